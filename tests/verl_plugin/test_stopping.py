"""SIGTERM and SIGINT are heard by a process whose main thread isn't; a run that stands still is told of and ended."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.verl_plugin.activity import Activity
from rgtrain.verl_plugin.stopping import EXIT_INTERRUPTED, EXIT_REQUEUE
from rgtrain.verl_plugin.watchdog import EXIT_HUNG, watched

# A step that never ends: its main thread holds a lock for ever, in C.
PROGRAM = """
import os, sys, threading
from rgtrain.verl_plugin.stopping import STOP
def end(reason, exit_code):
    print(reason, flush=True)
    os._exit(exit_code)
with STOP.listening(limit_s=float(sys.argv[1]), end=end):
    if sys.argv[2] == "training":
        STOP.steps_begin()
    print("ready", flush=True)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


def stuck(*, limit_s: float, phase: str = "training") -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(limit_s), phase]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, EXIT_REQUEUE), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_a_step_that_takes_too_long_is_not_waited_for(number, code):
    process = stuck(limit_s=0.5)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{number.name}: stopping after this step, within 0.5 s" in said
    assert "not done within 0.5 s (trainer.stop_within_s)" in said


def test_a_second_signal_ends_at_once_but_not_the_same_one_sent_twice():
    process = stuck(limit_s=600)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE
    assert "a second SIGTERM: ended at once" in said


def test_while_a_run_starts_there_is_nothing_to_wait_for():
    process = stuck(limit_s=600, phase="starting")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE
    assert "ended while starting" in said


def test_a_phase_that_stands_still_is_reported_and_then_ended(capfd):
    activity, ended = Activity(), threading.Event()
    endings = []

    def end(reason: str, exit_code: int) -> None:
        endings.append((reason, exit_code))
        ended.set()

    with watched(activity, report_after_s=2, end_after_s=4, end=end), activity.within("gen"):
        activity.step = 3
        for _ in range(20):
            activity.moved()
            time.sleep(0.2)
        assert endings == []
        assert ended.wait(60)
    assert endings[0] == ("ended: generate of step 3 stood still for 4 s (trainer.watchdog.end_after_s)", EXIT_HUNG)
    said = capfd.readouterr()
    assert said.out.count("generate of step 3 has stood still for 2 s") == 1
    assert "test_stopping.py" in said.err and "most recent call first" in said.err
