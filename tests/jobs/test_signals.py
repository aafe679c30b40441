"""Stop signals arrive in a thread even if the main thread is stuck, and only inside the block."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgtrain.jobs.signals import (
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    STOP_SIGNALS,
    accepted_signals,
    exit_code_of,
    is_second_request,
    received,
)
from rgtrain.paths import PROJECT_ROOT

# Prints the signals that arrive in a thread while the main thread waits for a lock forever, in C.
STUCK = """
import threading
from rgtrain.jobs.signals import accepted_signals, received
def show(arrivals):
    for number in arrivals:
        print(number.name, flush=True)
with received(accepted_signals(), lambda *_: None) as arrivals:
    threading.Thread(target=show, args=(arrivals,), daemon=True).start()
    print("ready", flush=True)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


@pytest.fixture
def stuck() -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


def test_every_stop_signal_arrives_even_if_the_main_thread_is_stuck(stuck):
    for number in STOP_SIGNALS:
        stuck.send_signal(number)
        assert stuck.stdout.readline() == f"{number.name}\n"


def test_the_main_thread_handles_each_signal_too():
    handled = []
    with received(STOP_SIGNALS, lambda number, _: handled.append(number)):
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
    assert handled == list(STOP_SIGNALS)


def test_a_signal_that_was_not_requested_does_not_arrive():
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with received([signal.SIGTERM], lambda *_: None) as arrivals:
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGTERM)
            assert next(arrivals) == signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_arrivals_end_with_the_block():
    with received(STOP_SIGNALS, lambda *_: None) as arrivals:
        signal.raise_signal(signal.SIGHUP)
    assert list(arrivals) == [signal.SIGHUP]


def test_no_descriptor_stays_open_after_the_block():
    before = open_descriptors()
    with received(STOP_SIGNALS, lambda *_: None) as arrivals:
        pass
    assert list(arrivals) == []
    assert open_descriptors() == before


def test_the_previous_handlers_are_restored_after_a_failed_block():
    before = handlers()
    with pytest.raises(ValueError), received(STOP_SIGNALS, lambda *_: None):
        assert handlers() != before
        raise ValueError
    assert handlers() == before


def test_a_handler_that_a_library_sets_does_not_outlive_the_block():
    before = handlers()
    with received(STOP_SIGNALS, lambda *_: None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert handlers() == before


def test_more_signals_than_a_pipe_holds_do_not_block():
    num_handled = 0

    def count(*_: object) -> None:
        nonlocal num_handled
        num_handled += 1

    with received(STOP_SIGNALS, count):
        for _ in range(100_000):
            signal.raise_signal(signal.SIGHUP)
    assert num_handled == 100_000


def test_a_job_under_nohup_ignores_sighup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert accepted_signals() == (signal.SIGTERM, signal.SIGINT)
        with received(accepted_signals(), lambda *_: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_job_accepts_every_stop_signal_by_default():
    assert accepted_signals() == STOP_SIGNALS


def test_ctrl_c_exits_as_in_a_shell_and_other_signals_ask_for_a_requeue():
    assert (EXIT_INTERRUPTED, EXIT_REQUEUE) == (130, 75)
    codes = {number: exit_code_of(number) for number in STOP_SIGNALS}
    assert codes == {signal.SIGTERM: EXIT_REQUEUE, signal.SIGHUP: EXIT_REQUEUE, signal.SIGINT: EXIT_INTERRUPTED}


@pytest.mark.parametrize(
    ("number", "seconds", "is_second"),
    [
        (signal.SIGTERM, 0.1, False),
        (signal.SIGINT, 0.1, False),
        (signal.SIGTERM, 5.0, True),
        (signal.SIGINT, 5.0, True),
        (signal.SIGHUP, 5.0, False),
    ],
)
def test_a_later_signal_is_a_second_request_unless_the_terminal_closes(number, seconds, is_second):
    assert is_second_request(number, seconds_since_first=seconds) is is_second
