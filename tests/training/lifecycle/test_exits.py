"""A run that ends early reports the cause and how to continue, and exits with a code for schedulers."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from support.experiments import small_experiment

from rgtrain.config.run_config import plain_config
from rgtrain.jobs.signals import EXIT_INTERRUPTED, EXIT_REQUEUE
from rgtrain.jobs.watchdog import EXIT_HUNG
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import Scorer
from rgtrain.training.lifecycle import exits
from rgtrain.training.lifecycle.exits import cause
from rgtrain.training.lifecycle.training_activity import ACTIVITY

# A run whose steps are BODY.
RUN = """
import atexit, json, sys, threading, time
from rgtrain.config.run_config import RunConfig
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.lifecycle.exits import report_exit
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped

def stand_still():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def wait_for_request():
    while not STOP.is_made:
        ACTIVITY.moved()
        time.sleep(0.01)

atexit.register(print, "an exit handler ran")
with report_exit(RunConfig.of(json.loads(sys.argv[1])), stopping=lambda: announce("a request to stop")):
    STOP.steps_begin()
    announce("ready")
    BODY
print("after the run")
"""
STOPPED = "wait_for_request(); raise TrainingStopped('stopped after step 3')"


@pytest.fixture(autouse=True)
def start_phase(monkeypatch) -> None:
    """Let this process be in the phase of a start, even if tests of other files left another phase."""
    monkeypatch.setattr(ACTIVITY, "phase", "start")


def start(run_dir: Path, body: str, *, stdout: int | IO = subprocess.PIPE, **trainer: object) -> subprocess.Popen:
    config = plain_config(small_experiment(run_dir, "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384"))
    watchdog = {"report_after_s": None, "end_after_s": None}
    config["trainer"] |= {"stop_within_s": 60, "watchdog": watchdog, **trainer}
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-c", RUN.replace("BODY", body), json.dumps(config)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


def end_of(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Return the exit code and the terminal's lines, without the time before each progress line."""
    said, errors = process.communicate(timeout=60)
    assert errors == ""
    return process.returncode, [line.split("] ", 1)[-1] for line in said.splitlines()]


def signalled(process: subprocess.Popen, number: signal.Signals) -> subprocess.Popen:
    assert process.stdout.readline().endswith("] ready\n")
    process.send_signal(number)
    return process


def saved(run_dir: Path, *steps: int) -> None:
    for step in steps:
        (run_dir / "checkpoints" / f"global_step_{step}").mkdir(parents=True)


def test_a_finished_run_exits_like_any_program(tmp_path):
    code, lines = end_of(start(tmp_path, "pass"))
    assert (code, lines) == (0, ["ready", "after the run", "an exit handler ran"])


def test_a_failed_run_ends_with_its_cause_and_exit_code_1(tmp_path):
    code, lines = end_of(start(tmp_path, "raise ValueError('no such thing')"))
    log = f"the run's full log: {tmp_path}/train.log"
    error = "error: ValueError: no such thing (in start); no checkpoint saved"
    assert (code, lines) == (1, ["ready", error, log])


def test_the_traceback_of_a_failure_is_in_the_log(tmp_path):
    end_of(start(tmp_path, "raise ValueError('no such thing')"))
    log = (tmp_path / "train.log").read_text()
    assert "Traceback (most recent call last)" in log and "\nValueError: no such thing\n" in log


def test_the_final_lines_are_in_the_log_too(tmp_path):
    _, lines = end_of(start(tmp_path, "raise ValueError('no such thing')"))
    assert (tmp_path / "train.log").read_text().splitlines()[-2:] == lines[-2:]


def test_an_exit_by_a_library_counts_as_a_failure(tmp_path):
    code, lines = end_of(start(tmp_path, "sys.exit(0)"))
    assert code == 1
    assert lines[1] == "error: SystemExit: 0 (in start); no checkpoint saved"


def test_a_run_out_of_memory_names_the_key_to_change(tmp_path):
    _, lines = end_of(start(tmp_path, "raise RuntimeError('CUDA out of memory')"))
    assert "lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu (now 16384, try 8192)" in lines[2]


def test_a_secret_in_a_failure_is_not_printed(tmp_path):
    code, lines = end_of(start(tmp_path, "raise ValueError('api_key=SECRET is refused')"))
    assert (code, lines[1]) == (1, "error: ValueError: api_key=*** is refused (in start); no checkpoint saved")
    assert "SECRET" not in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("resume_mode", "outlook"),
    [
        ("auto", "the same command continues after step 10"),
        ("disable", "the last checkpoint is from step 10"),
        ("resume_path", "the last checkpoint is from step 10"),
    ],
)
def test_a_failed_run_says_how_to_continue_it(tmp_path, resume_mode, outlook):
    saved(tmp_path, 9, 10)
    _, lines = end_of(start(tmp_path, "raise ValueError('failed')", resume_mode=resume_mode))
    assert lines[1] == f"error: ValueError: failed (in start); {outlook}"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, EXIT_REQUEUE), (signal.SIGHUP, EXIT_REQUEUE), (signal.SIGINT, EXIT_INTERRUPTED)],
)
def test_a_run_that_was_asked_to_stop_has_the_exit_code_of_the_signal(tmp_path, number, code):
    saved(tmp_path, 3)
    returned, lines = end_of(signalled(start(tmp_path, STOPPED), number))
    assert returned == code
    assert lines[0] == "a request to stop"
    assert lines[-1] == "stopped after step 3; the same command continues after step 3"


def test_a_run_that_was_asked_to_stop_has_no_traceback(tmp_path):
    end_of(signalled(start(tmp_path, STOPPED), signal.SIGTERM))
    assert "Traceback" not in (tmp_path / "train.log").read_text()


def test_a_run_that_fails_while_it_stops_asks_for_a_requeue(tmp_path):
    body = "wait_for_request(); raise RuntimeError('the worker is gone')"
    code, lines = end_of(signalled(start(tmp_path, body), signal.SIGTERM))
    assert code == EXIT_REQUEUE
    assert "error: RuntimeError: the worker is gone (in start); no checkpoint saved" in lines


def test_a_stuck_run_that_was_asked_to_stop_ends_without_saving(tmp_path):
    saved(tmp_path, 2)
    code, lines = end_of(signalled(start(tmp_path, "stand_still()", stop_within_s=0.5), signal.SIGTERM))
    assert code == EXIT_REQUEUE
    assert lines[-1].startswith("stopped by SIGTERM without saving this step")
    assert lines[-1].endswith("; the same command continues after step 2")


def test_the_watchdog_ends_a_stuck_run_and_reports_how_to_continue(tmp_path):
    saved(tmp_path, 2)
    body = "ACTIVITY.step = 3; ACTIVITY.within('gen').__enter__(); stand_still()"
    code, lines = end_of(start(tmp_path, body, watchdog={"report_after_s": 1, "end_after_s": 2}))
    assert code == EXIT_HUNG
    assert lines[1].startswith("generate of step 3 has stood still for ")
    assert lines[2].startswith("ended: generate of step 3 stood still for ")
    assert lines[2].endswith("(trainer.watchdog.end_after_s); the same command continues after step 2")
    assert "in stand_still" in (tmp_path / "train.log").read_text()


def test_a_thread_that_never_ends_does_not_keep_a_failed_run_alive(tmp_path):
    code, _ = end_of(start(tmp_path, "threading.Thread(target=stand_still).start(); raise ValueError"))
    assert code == 1


STOPS_ITSELF = "import signal; signal.raise_signal(signal.SIGTERM); " + STOPPED


def test_a_stopped_run_keeps_its_exit_code_if_its_terminal_takes_no_output(tmp_path):
    with Path("/dev/full").open("w") as full:
        process = start(tmp_path, STOPS_ITSELF, stdout=full)
        process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE
    assert (tmp_path / "train.log").read_text().endswith("\nstopped after step 3; no checkpoint saved\n")


def test_a_stopped_run_keeps_its_exit_code_if_its_output_is_not_read(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = start(tmp_path, STOPS_ITSELF, stdout=writer)
    os.close(writer)
    process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE
    assert (tmp_path / "train.log").read_text().endswith("\nstopped after step 3; no checkpoint saved\n")


def test_a_failed_run_reports_its_cause_even_if_its_log_cannot_be_written(tmp_path):
    (tmp_path / "train.log").symlink_to("/dev/full")
    process = start(tmp_path, "raise ValueError('failed')")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: ValueError: failed (in start); no checkpoint saved\n" in said


def raised(*errors: Exception) -> Exception:
    """Return the last of `errors`, each raised from the previous one."""
    for earlier, later in itertools.pairwise(errors):
        later.__cause__ = earlier
    return errors[-1]


def test_a_full_disk_is_named_even_if_a_library_raised_another_error_first():
    error = raised(
        RuntimeError("unexpected pos 8320 vs 8214"), OSError(errno.ENOSPC, "No space left on device", "runs")
    )
    assert cause(error) == "No space left on device: runs (in start)"


def test_a_full_disk_is_named_if_another_error_was_raised_while_handling_it():
    with pytest.raises(RuntimeError) as caught:
        try:
            with Path("/dev/full").open("w") as file:
                file.write("x")
        except OSError:
            raise RuntimeError("the writer failed")  # noqa: B904
    assert cause(caught.value) == "No space left on device: a disk is full (in start)"


def test_an_exceeded_quota_is_reported_like_a_full_disk():
    error = raised(OSError(errno.EDQUOT, "Disk quota exceeded", "runs"), RuntimeError("the writer failed"))
    assert cause(error) == "Disk quota exceeded: runs (in start)"


def test_any_other_file_error_is_reported_like_other_errors():
    assert cause(FileNotFoundError(errno.ENOENT, "No such file", "x")) == (
        "FileNotFoundError: [Errno 2] No such file: 'x' (in start)"
    )


def test_the_first_of_several_exceptions_is_the_cause():
    assert cause(raised(KeyError("loss"), RuntimeError("the step failed"))) == "KeyError: 'loss' (in start)"


def test_an_exception_that_was_being_handled_is_not_the_cause():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise KeyError("loss")
        except KeyError:
            raise RuntimeError("the step failed")  # noqa: B904
    assert cause(caught.value) == "RuntimeError: the step failed (in start)"


@pytest.mark.parametrize(("message", "shown"), [("Traceback:\n  deep\nlast line\n", "last line"), ("", ""), ("\n", "")])
def test_the_cause_is_one_line(message, shown):
    assert cause(ValueError(message)) == f"ValueError: {shown} (in start)"


def test_the_cause_names_the_phase_that_failed(monkeypatch):
    monkeypatch.setattr(ACTIVITY, "phase", "update_actor")
    monkeypatch.setattr(ACTIVITY, "step", 3)
    assert cause(ValueError("failed")) == "ValueError: failed (in update of step 3)"


def test_the_death_of_a_worker_is_the_cause():
    error = raised(ActorDiedError(), RuntimeError("the step failed"))
    assert cause(error) == ("a training worker died in start: it crashed or was killed (the log has its last output)")


def test_a_worker_that_the_kernel_killed_for_memory_is_reported_as_such(monkeypatch):
    monkeypatch.setattr(exits, "_KILLED_BEFORE", exits._num_killed_for_memory() - 1)
    assert cause(ActorDiedError()).endswith("this machine ran out of memory, and its kernel killed a process")


def test_a_worker_whose_constructor_raised_names_its_own_failure():
    failure = RayTaskError("Worker.__init__", "Traceback:\nValueError: no such model", ValueError("no such model"))
    assert cause(ActorDiedError(failure)) == "ActorDiedError: ValueError: no such model (in start)"


def test_the_death_of_the_scoring_server_is_the_cause():
    with Scorer(num_workers=1) as scorer:
        scorer._pool._server._process.kill()
        scorer._pool._server._process.wait()
        try:
            scorer._pool._server.release(1)
        except RuntimeError as error:
            assert cause(error).startswith("RuntimeError: the scoring server ended unexpectedly")
