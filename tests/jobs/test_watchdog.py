"""A job that makes progress runs on, and a job that stands still is reported and then ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rgtrain.jobs import watchdog
from rgtrain.jobs.activity import Activity
from rgtrain.jobs.watchdog import EXIT_HUNG, watched
from rgtrain.machine.orphan_cleanup import RUN_ID
from rgtrain.paths import PROJECT_ROOT

# A job that does BODY under a watchdog that looks often and ends the process.
JOB = """
import os, sys, threading, time
from rgtrain.jobs import watchdog
from rgtrain.jobs.activity import Activity
watchdog._LOOK_EVERY_SECONDS = 0.05
activity = Activity()
def end(reason, exit_code):
    print(reason, flush=True)
    os._exit(exit_code)
def stand_still():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
with watchdog.watched(activity, report_after_s=0.5, end_after_s=1, end=end, announce=lambda line: None):
    BODY
"""
# A worker of the run. It responds to the watchdog only if its argument is "answers".
WORKER = """
import sys, time
from rgtrain.jobs.watchdog import print_stacks_on_request
def stands_here():
    print("ready", flush=True)
    time.sleep(600)
if sys.argv[1] == "answers":
    print_stacks_on_request()
stands_here()
"""


@pytest.fixture
def activity(monkeypatch) -> Activity:
    monkeypatch.setattr(watchdog, "_LOOK_EVERY_SECONDS", 0.05)
    return Activity({"gen": "generate"})


def job(body: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", JOB.replace("BODY", body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@contextmanager
def worker(*, name: str, run_id: str, answers: bool = True) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), RUN_ID: run_id}
    process = subprocess.Popen(
        [name, "-c", WORKER, "answers" if answers else "is silent"],
        executable=sys.executable,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def report_one_standstill(activity: Activity) -> None:
    """Return after the watchdog has reported a standstill and asked the workers."""
    ended = threading.Event()
    # The watchdog reports a job before it ends it.
    with watched(activity, report_after_s=0.1, end_after_s=0.2, end=lambda *_: ended.set(), announce=lambda line: None):
        assert ended.wait(60)


def test_a_standstill_is_reported_and_then_ends_the_job(activity, capfd):
    said, ends, ended = [], [], threading.Event()

    def end(reason: str, exit_code: int) -> None:
        ends.append((reason, exit_code))
        ended.set()

    with (
        watched(activity, report_after_s=1, end_after_s=2, end=end, announce=said.append),
        activity.within("gen"),
    ):
        activity.step = 3
        for number in range(20):
            activity.moved(f"completion {number} of 40")
            time.sleep(0.1)
        assert ends == [] and said == []
        assert ended.wait(60)
    place = "at completion 19 of 40"
    reason = f"ended: generate of step 3 stood still for 2 s {place} (trainer.watchdog.end_after_s)"
    assert ends == [(reason, EXIT_HUNG)]
    assert said == [f"generate of step 3 has stood still for 1 s {place}; stack traces are in train.log"]
    traces = capfd.readouterr().err
    assert "test_watchdog.py" in traces and "most recent call first" in traces


def test_a_limit_of_none_means_no_limit(activity):
    said, ends = [], []
    with watched(
        activity, report_after_s=None, end_after_s=None, end=lambda *end: ends.append(end), announce=said.append
    ):
        time.sleep(0.3)
    assert said == ends == []


def test_a_stuck_process_ends_with_the_stack_of_its_main_thread():
    said, traces = (process := job("stand_still()")).communicate(timeout=60)
    assert process.returncode == EXIT_HUNG == 1
    assert said.startswith("ended: start stood still for 1 s")
    assert "in stand_still" in traces


def test_a_stuck_process_ends_even_if_its_other_threads_are_stuck_too():
    body = "[threading.Thread(target=stand_still).start() for _ in range(3)]; stand_still()"
    _, traces = (process := job(body)).communicate(timeout=60)
    assert process.returncode == EXIT_HUNG
    assert traces.count("in stand_still") == 4


def test_the_report_names_the_log_and_the_setting_of_the_job(activity):
    said, ends, ended = [], [], threading.Event()

    def end(reason: str, exit_code: int) -> None:
        ends.append(reason)
        ended.set()

    names = {"traces_in": "evaluation.log", "end_setting": "watchdog.end_after_s"}
    with watched(activity, report_after_s=0.1, end_after_s=0.3, end=end, announce=said.append, **names):
        assert ended.wait(60)
    assert said[0].endswith("stack traces are in evaluation.log")
    assert ends[0].endswith("(watchdog.end_after_s)")


def test_each_standstill_is_reported_once(activity):
    said = []
    with watched(activity, report_after_s=0.2, end_after_s=None, end=lambda *_: None, announce=said.append):
        for num_reports in (1, 2):
            activity.moved()
            deadline = time.monotonic() + 60
            while len(said) < num_reports and time.monotonic() < deadline:
                time.sleep(0.01)
            # Long enough for a second report of the same standstill.
            time.sleep(0.5)
            assert len(said) == num_reports


def test_nothing_is_reported_or_ended_after_the_block(activity):
    said, ends = [], []
    with watched(
        activity, report_after_s=0.2, end_after_s=0.2, end=lambda *end: ends.append(end), announce=said.append
    ):
        pass
    time.sleep(0.5)
    assert said == ends == []


def test_a_suspension_is_not_a_standstill():
    process = job("for _ in range(10): print('moves', flush=True); activity.moved(); time.sleep(0.1)")
    assert process.stdout.readline() == "moves\n"
    process.send_signal(signal.SIGSTOP)
    # Longer than `end_after_s`.
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "moves\n" * 9)


def test_a_worker_of_the_run_prints_its_stacks_when_the_job_stands_still(activity, monkeypatch):
    monkeypatch.setenv(RUN_ID, "units")
    with worker(name="ray::Worker", run_id="units") as process:
        report_one_standstill(activity)
        process.send_signal(signal.SIGTERM)
        assert "in stands_here" in process.communicate()[1]


@pytest.mark.parametrize(
    ("name", "run_id", "answers"),
    [("ray::Worker", "another run", True), ("python", "units", True), ("ray::Worker", "units", False)],
    ids=["a worker of another run", "not a worker", "a worker without a handler"],
)
def test_no_other_process_gets_the_signal(activity, monkeypatch, name, run_id, answers):
    monkeypatch.setenv(RUN_ID, "units")
    with worker(name=name, run_id=run_id, answers=answers) as process:
        report_one_standstill(activity)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[1] == ""


def test_a_job_without_a_run_id_signals_no_process(activity, monkeypatch):
    monkeypatch.delenv(RUN_ID, raising=False)
    with worker(name="ray::Worker", run_id="units") as process:
        report_one_standstill(activity)
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[1] == ""
