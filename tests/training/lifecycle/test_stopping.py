"""A run stops on SIGTERM, SIGINT and SIGHUP even if its main thread is stuck."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from rgtrain.jobs.signals import EXIT_INTERRUPTED, EXIT_REQUEUE
from rgtrain.paths import PROJECT_ROOT

# A step that never ends, because its main thread waits for a lock forever, in C.
PROGRAM = """
import os, sys, threading
from rgtrain.training.lifecycle.stopping import STOP
def begun():
    print("begun", flush=True)
def end(reason, exit_code):
    print(reason, flush=True)
    os._exit(exit_code)
with STOP.listening(limit_s=float(sys.argv[1]), end=end, begun=begun):
    if sys.argv[2] == "training":
        STOP.steps_begin()
    print("ready", flush=True)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


def stuck(*, limit_s: float, phase: str = "training", under: Sequence[str] = ()) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [*under, sys.executable, "-c", PROGRAM, str(limit_s), phase]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    return process


EXIT_CODES = [(signal.SIGTERM, EXIT_REQUEUE), (signal.SIGHUP, EXIT_REQUEUE), (signal.SIGINT, EXIT_INTERRUPTED)]


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_a_run_ends_without_saving_if_its_step_takes_too_long(number, code):
    process = stuck(limit_s=0.5)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{number.name}: stopping after this step, within 0.5 s" in said
    assert f"stopped by {number.name} without saving this step: it took over 0.5 s (trainer.stop_within_s)" in said


def test_a_second_signal_ends_the_run_at_once_unless_it_only_repeats_the_first():
    process = stuck(limit_s=600)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE
    assert "stopped at once by a second signal (SIGTERM)" in said


def test_a_closing_terminal_that_sends_several_signals_leaves_time_to_save():
    process = stuck(limit_s=600)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(1.2)
    assert process.poll() is None
    process.kill()
    assert process.communicate()[0].count("SIGHUP: stopping after this step") == 1


def test_a_run_under_nohup_goes_on_when_its_terminal_closes():
    process = stuck(limit_s=600, under=["nohup"])
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.stdout.readline()
    said = process.stdout.readline()
    process.kill()
    process.communicate()
    assert said.startswith("[rgtrain] SIGTERM: stopping after this step")


def test_the_start_of_stopping_is_reported_first():
    process = stuck(limit_s=600)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.communicate()


def test_a_run_that_is_still_starting_ends_at_once():
    process = stuck(limit_s=600, phase="starting")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE
    assert said == "begun\nstopped by SIGTERM during start-up\n"


def test_a_run_that_lost_its_terminal_keeps_its_exit_code_and_logs_its_final_lines(tmp_path):
    program = """
import os, sys
from pathlib import Path
from rgtrain.training.lifecycle.exits import print_and_exit
terminal, follower = os.openpty()
for descriptor in (1, 2):
    os.dup2(follower, descriptor)
os.close(follower)
os.close(terminal)
print_and_exit(75, "stopped after step 3", log=Path(sys.argv[1]))
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "train.log")], env=environment)
    assert done.returncode == 75
    assert (tmp_path / "train.log").read_text() == "stopped after step 3\n"
