"""Stopping an evaluation by signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rgtrain.paths import PROJECT_ROOT

STUCK = """
import sys, time
from rgtrain.evaluation import evaluation_stopping

evaluation_stopping._STOP_WITHIN_SECONDS = float(sys.argv[1])
evaluation_stopping.STOP.outlook = lambda: (
    "5 of 9 answers are kept, 2 of them not judged yet; the same command continues"
)
try:
    with evaluation_stopping.STOP.listening():
        if sys.argv[2] == "start":
            print("ready", flush=True)
            time.sleep(600)
        with evaluation_stopping.STOP.answering():
            print("ready", flush=True)
            time.sleep(600)
except evaluation_stopping.EvaluationStopped as stopped:
    print(stopped, flush=True)
    sys.exit(evaluation_stopping.STOP.exit_code)
"""
AT_ONCE = "stopped at once by a second signal (SIGINT); 5 of 9 answers are kept, 2 of them not judged yet"
LATE = "stopped by SIGTERM; judging the received answers took longer than 1 s; 5 of 9 answers are kept"


@pytest.mark.parametrize(
    ("number", "within_s", "phase", "seconds_between", "said", "code"),
    [
        (signal.SIGINT, 600, "answering", [0, 1.2], AT_ONCE, 130),
        (signal.SIGTERM, 1, "answering", [0], LATE, 75),
        (signal.SIGINT, 600, "start", [0], "stopped by SIGINT\n", 130),
        (signal.SIGTERM, 600, "start", [0], "stopped by SIGTERM\n", 75),
        (signal.SIGHUP, 600, "start", [0], "stopped by SIGHUP\n", 75),
    ],
)
def test_a_stuck_evaluation_ends_too_and_reports_how_many_answers_were_kept(
    number, within_s, phase, seconds_between, said, code
):
    command = [sys.executable, "-c", STUCK, str(within_s), phase]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    for seconds in seconds_between:
        time.sleep(seconds)
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert said in out
    assert process.returncode == code
