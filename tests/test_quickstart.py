"""The quickstart forwards signals to its commands and exits with their exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rgtrain.paths import PROJECT_ROOT

STEP = """
import signal, sys, time
signal.signal(signal.{name}, lambda *_: sys.exit({code}))
print("ready", flush=True)
time.sleep(600)
"""
JOB = """
import sys
from rgtrain import quickstart
try:
    quickstart._run_command("a step", [sys.executable, "-u", sys.argv[1]])
except quickstart.StepFailed as failure:
    print(failure, flush=True)
    sys.exit(failure.exit_code)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130), ("SIGHUP", 75)])
def test_a_signal_reaches_the_step_and_its_exit_code_is_returned(tmp_path, name, code):
    program = tmp_path / "step.py"
    program.write_text(STEP.format(name=name, code=code))
    job = subprocess.Popen(
        [sys.executable, "-u", "-c", JOB, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
    )
    while "ready" not in job.stdout.readline():
        assert job.poll() is None
    job.send_signal(signal.Signals[name])
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code
    assert f"a step ended with exit code {code}" in output


def test_a_killed_step_gives_the_exit_code_of_a_shell(tmp_path):
    program = Path(tmp_path / "step.py")
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    assert subprocess.run([sys.executable, "-c", JOB, str(program)], env=environment).returncode == 137


def test_without_a_terminal_the_exit_code_of_the_step_is_kept(tmp_path):
    program = tmp_path / "step.py"
    program.write_text("import sys; sys.exit(75)")
    job = """
import os, sys
from rgtrain import quickstart
from rgtrain.jobs.terminal import say
terminal, follower = os.openpty()
for descriptor in (1, 2):
    os.dup2(follower, descriptor)
os.close(follower)
os.close(terminal)
try:
    quickstart._run_command("a step", [sys.executable, "-u", sys.argv[1]])
except quickstart.StepFailed as failure:
    say(str(failure), file=sys.stderr)
    sys.exit(failure.exit_code)
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    assert subprocess.run([sys.executable, "-c", job, str(program)], env=environment).returncode == 75
