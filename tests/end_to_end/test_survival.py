"""One run survives a second start, a stuck worker and a closed terminal."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.run_processes import run_environment

from rgtrain.machine.environment import cpu_environment
from rgtrain.machine.orphan_cleanup import FOLDER, RUN_ID, processes_of
from rgtrain.paths import PROJECT_ROOT

NUM_STEPS = 100


class Training:
    """A process of the run's command in a separate process group, with a separate TMPDIR."""

    def __init__(self, command: list[str], *words: str):
        # Some schedulers make paths so long that no socket fits.
        self.temporary = Path(tempfile.mkdtemp(), "x" * 116)
        self.temporary.mkdir()
        environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "TMPDIR": str(self.temporary)}
        # The run sets these itself.
        for name in ("RAY_worker_niceness", *cpu_environment()):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text: str, *, after: int = 0) -> None:
        """Wait until the output contains `text` after its first `after` characters."""
        self._wait_until(lambda: text in self.output[after:], or_fail=lambda: self.process.poll() is not None)

    def _wait_until(self, condition: Callable[[], bool], *, or_fail: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline and not or_fail(), self.output
            time.sleep(0.05)

    def run_id(self) -> str:
        """Return the mark that identifies the run's processes."""
        return run_environment(self.process.pid)[RUN_ID]

    def folder(self) -> Path:
        """Return the run's folder for temporary files."""
        return Path(run_environment(self.process.pid)[FOLDER])

    def idle_mb(self) -> list[int]:
        """Return the resident memory of each idle worker of Ray."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in processes_of(self.run_id())]
        return [int(re.search(r"VmRSS:\s+(\d+)", text)[1]) >> 10 for text in status if "Name:\tray::IDLE" in text]

    def worker(self) -> int:
        """Return the process that trains and generates."""
        pids = processes_of(self.run_id())
        return next(pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::WorkerDict"))

    def end(self, run_id: str, folder: Path) -> int:
        """Wait until the process and all its descendants have ended, and return its exit code."""
        code = self.process.wait()
        self._wait_until(lambda: not list(processes_of(run_id)) and not folder.exists())
        self._reader.join()
        assert not list(self.temporary.rglob("session_*"))
        shutil.rmtree(self.temporary.parent)
        return code


@pytest.fixture(scope="module")
def story(tiny_model, tmp_path_factory) -> SimpleNamespace:
    run_dir = tmp_path_factory.mktemp("survival") / "run"
    command = [sys.executable, "-u", str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart"]
    command += [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={run_dir}", "hardware=cpu"]
    command += [f"trainer.total_training_steps={NUM_STEPS}", "trainer.save_freq=100", "data.train_size=400"]
    command += ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    command += ["trainer.watchdog.report_after_s=5"]
    training = Training(command)
    second = start_second_run(training, command, run_dir)
    stuck = stop_worker(training)
    stopped = hang_up(training)
    # The signal may arrive in any step.
    saved = int(re.search(r"stopped after step (\d+)", stopped.output)[1])
    return SimpleNamespace(run_dir=run_dir, second=second, stuck=stuck, after_hangup=stopped, saved=saved)


def start_second_run(training: Training, command: list[str], run_dir: Path) -> SimpleNamespace:
    training.wait_for(" | reward")
    # The running process changes these files meanwhile.
    changes = ("train.log", "metrics.jsonl", "tensorboard", "rollouts", "checkpoints")
    before = {file.name: file.read_bytes() for file in run_dir.iterdir() if file.name not in changes}
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)})
    return SimpleNamespace(
        done=done,
        holder=training.process.pid,
        before=before,
        after={file.name: file.read_bytes() for file in run_dir.iterdir() if file.name not in changes},
        keeps_metrics=(run_dir / "metrics.jsonl").read_bytes().startswith(metrics),
    )


def hang_up(training: Training) -> SimpleNamespace:
    run_id, folder = training.run_id(), training.folder()
    idle_mb = training.idle_mb()
    mode = stat.S_IMODE(folder.stat().st_mode)
    has_session = any(folder.glob("r/session_*"))
    # A closing terminal signals all processes of the group, as many schedulers do with SIGTERM.
    os.killpg(training.process.pid, signal.SIGHUP)
    return SimpleNamespace(
        code=training.end(run_id, folder), output=training.output, idle_mb=idle_mb, mode=mode, has_session=has_session
    )


def stop_worker(training: Training) -> SimpleNamespace:
    """Stop the worker until that is reported, and let it go on."""
    worker = training.worker()
    niceness = os.getpriority(os.PRIO_PROCESS, worker)
    environment = Path(f"/proc/{worker}/environ").read_text().split("\0")
    os.kill(worker, signal.SIGSTOP)
    training.wait_for("has stood still for 5 s", after=training.output.rindex(" | reward"))
    os.kill(worker, signal.SIGCONT)
    training.wait_for(" | reward", after=training.output.rindex("has stood still"))
    return SimpleNamespace(niceness=niceness, environment=environment)


def test_a_second_start_in_the_same_folder_exits_at_once_without_changes(story):
    second = story.second
    assert second.done.returncode == 2, second.done.stdout + second.done.stderr
    assert f"is in use by process {second.holder} on" in second.done.stderr
    assert len(second.done.stderr.splitlines()) == 1
    assert second.before == second.after and {"config.yaml", "provenance.jsonl", ".lock"} <= second.before.keys()
    assert second.keeps_metrics


def test_a_run_saves_its_step_and_says_how_to_resume_when_its_terminal_closes(story):
    assert story.after_hangup.code == 75
    assert "SIGHUP: stopping after this step" in story.after_hangup.output
    saved = story.saved
    last_words = f"stopped after step {saved}; the same command continues after step {saved}"
    assert last_words in story.after_hangup.output
    assert last_words in (story.run_dir / "train.log").read_text()


def test_no_idle_worker_keeps_the_modules_of_the_warm_up(story):
    # Ray prestarts workers of 80 to 130 MB each. A worker that has imported torch and vLLM has 600 MB.
    assert max(story.after_hangup.idle_mb, default=0) < 300


def test_a_worker_shares_a_busy_machine_fairly(story):
    assert story.stuck.niceness == os.getpriority(os.PRIO_PROCESS, 0)
    assert {"OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=0", "KMP_BLOCKTIME=0"} <= set(story.stuck.environment)


def test_other_users_cannot_reach_the_files_of_ray(story):
    # Ray makes its folder writable for everyone, but the parent folder is closed to others.
    assert story.after_hangup.has_session and story.after_hangup.mode == 0o700


def test_no_file_of_the_run_contains_the_mark_of_progress_lines(story):
    texts = [(story.run_dir / name).read_text() for name in ("train.log", "config.yaml", "provenance.jsonl")]
    assert not any(re.search(r"\[rgtrain \w+\]", text) for text in texts)


def test_a_stalled_phase_is_reported_and_may_go_on(story):
    output = story.after_hangup.output
    still = re.findall(r"of step (\d+) has stood still for 5 s", output)
    assert any(f"step {step:>3}/{NUM_STEPS}" in output for step in still)
    log = (story.run_dir / "train.log").read_text()
    # The log has the stack of the trainer, and that of the worker once it runs again.
    assert 'trainer_base.py", line' in log
    assert re.search(r"WorkerDict pid=.*File .*training/(worker|rollout/vllm_rollout|update/engine).py", log)


def test_no_step_is_lost(story):
    steps = [json.loads(line)["step"] for line in (story.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, story.saved + 1))
