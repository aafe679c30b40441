"""One run through everything that ends runs: a second start, a closed terminal, a stuck and killed worker, SIGKILL."""

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

from rgtrain.machine.orphan_cleanup import FOLDER, RUN_ID, processes_of
from rgtrain.paths import PROJECT_ROOT

NUM_STEPS = 100


class Training:
    """A start of the run's command, in a process group of its own, with a TMPDIR of its own."""

    def __init__(self, command: list[str], *words: str):
        # As long as some schedulers make it: no socket has room in it.
        self.temporary = Path(tempfile.mkdtemp(), "x" * 116)
        self.temporary.mkdir()
        environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "TMPDIR": str(self.temporary)}
        environment.pop("RAY_worker_niceness", None)
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
        """Wait until it says `text`, behind the first `after` characters."""
        self._wait_until(lambda: text in self.output[after:], or_fail=lambda: self.process.poll() is not None)

    def _wait_until(self, condition: Callable[[], bool], *, or_fail: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline and not or_fail(), self.output
            time.sleep(0.05)

    def environment(self) -> dict[str, str]:
        """The variables of its first child, which all its processes have."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True)
        lines = Path(f"/proc/{children.stdout.split()[0]}/environ").read_text().split("\0")
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def run_id(self) -> str:
        """The mark that its processes are known by."""
        return self.environment()[RUN_ID]

    def folder(self) -> Path:
        """Its folder for temporary files."""
        return Path(self.environment()[FOLDER])

    def idle_mb(self) -> list[int]:
        """The resident memory of Ray's idle workers."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in processes_of(self.run_id())]
        return [int(re.search(r"VmRSS:\s+(\d+)", text)[1]) >> 10 for text in status if "Name:\tray::IDLE" in text]

    def worker(self) -> int:
        """The process that trains and generates."""
        pids = processes_of(self.run_id())
        return next(pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::WorkerDict"))

    def end(self, run_id: str, folder: Path) -> int:
        """Wait for its end and for that of all it started; its exit code."""
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
    first = Training(command)
    second = started_twice(first, command, run_dir)
    stopped = hung_up(first)
    return SimpleNamespace(
        run_dir=run_dir,
        second=second,
        hung_up=stopped,
        # In whichever step the signal came.
        saved=int(re.search(r"stopped after step (\d+)", stopped.output)[1]),
        stuck=stuck_and_robbed(Training(command, "trainer.watchdog.report_after_s=5")),
        killed=killed(Training(command)),
    )


def started_twice(training: Training, command: list[str], run_dir: Path) -> SimpleNamespace:
    training.wait_for(" | reward")
    # The running process appends to metrics.jsonl meanwhile.
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


def hung_up(training: Training) -> SimpleNamespace:
    training.wait_for(" | reward")
    run_id, folder = training.run_id(), training.folder()
    idle_mb = training.idle_mb()
    mode = stat.S_IMODE(folder.stat().st_mode)
    has_session = any(folder.glob("r/session_*"))
    # To all of its processes, as a terminal that closes does, and many schedulers with SIGTERM.
    os.killpg(training.process.pid, signal.SIGHUP)
    return SimpleNamespace(
        code=training.end(run_id, folder), output=training.output, idle_mb=idle_mb, mode=mode, has_session=has_session
    )


def killed(training: Training) -> SimpleNamespace:
    training.wait_for(" | reward")
    training.wait_for(" | reward", after=training.output.index(" | reward") + 1)
    run_id, folder = training.run_id(), training.folder()
    num_processes = len(list(processes_of(run_id)))
    training.process.kill()
    return SimpleNamespace(code=training.end(run_id, folder), num_processes=num_processes, output=training.output)


def stuck_and_robbed(training: Training) -> SimpleNamespace:
    training.wait_for(" | reward")
    run_id, folder, worker = training.run_id(), training.folder(), training.worker()
    niceness = os.getpriority(os.PRIO_PROCESS, worker)
    environment = Path(f"/proc/{worker}/environ").read_text().split("\0")
    os.kill(worker, signal.SIGSTOP)
    training.wait_for("has stood still for 5 s", after=training.output.rindex(" | reward"))
    os.kill(worker, signal.SIGCONT)
    training.wait_for(" | reward", after=training.output.rindex("has stood still"))
    os.kill(worker, signal.SIGKILL)
    code = training.end(run_id, folder)
    return SimpleNamespace(code=code, output=training.output, niceness=niceness, environment=environment)


def test_a_second_start_in_the_same_folder_ends_at_once_and_changes_nothing(story):
    second = story.second
    assert second.done.returncode == 2, second.done.stdout + second.done.stderr
    assert f"is in use by process {second.holder} on" in second.done.stderr
    assert len(second.done.stderr.splitlines()) == 1
    assert second.before == second.after and {"config.yaml", "provenance.jsonl", ".lock"} <= second.before.keys()
    assert second.keeps_metrics


def test_a_run_whose_terminal_closes_saves_its_step_and_says_how_to_go_on(story):
    assert story.hung_up.code == 75
    assert "SIGHUP: stopping after this step" in story.hung_up.output
    saved = story.saved
    last_words = f"stopped after step {saved}; the same command continues after step {saved}"
    assert last_words in story.hung_up.output
    assert last_words in (story.run_dir / "train.log").read_text()


def test_no_idle_worker_holds_the_modules_of_the_warm_up(story):
    # Ray starts some workers ahead, with 80 to 130 MB each; one that has imported torch and vLLM has 600 MB.
    assert max(story.hung_up.idle_mb, default=0) < 300


def test_a_worker_shares_a_busy_machine_fairly(story):
    assert story.stuck.niceness == os.getpriority(os.PRIO_PROCESS, 0)
    assert {"OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=0", "KMP_BLOCKTIME=0"} <= set(story.stuck.environment)


def test_other_users_cannot_reach_the_files_of_ray(story):
    # Ray makes its own folder writable for everybody; the one above is closed.
    assert story.hung_up.has_session and story.hung_up.mode == 0o700


def test_the_mark_of_progress_lines_stands_in_no_file_of_the_run(story):
    texts = [(story.run_dir / name).read_text() for name in ("train.log", "config.yaml", "provenance.jsonl")]
    assert not any(re.search(r"\[rgtrain \w+\]", text) for text in texts)


def test_a_killed_run_leaves_no_process_behind(story):
    assert story.killed.code == -signal.SIGKILL
    assert story.killed.num_processes > 5


def test_a_phase_that_stands_still_is_reported_and_goes_on_if_it_can(story):
    assert f"continuing after step {story.saved}" in story.stuck.output
    still = re.findall(r"of step (\d+) has stood still for 5 s", story.stuck.output)
    assert any(f"step {step:>3}/{NUM_STEPS}" in story.stuck.output for step in still)
    log = (story.run_dir / "train.log").read_text()
    # Where the trainer stands, and the worker, which answers when it can.
    assert 'trainer_base.py", line' in log
    assert re.search(r"WorkerDict pid=.*File .*training/(worker|rollout/vllm_rollout|update/engine).py", log)


def test_a_worker_that_dies_ends_the_run_with_its_cause_in_a_line(story):
    assert story.stuck.code == 1
    errors = [line for line in story.stuck.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "a training worker died in " in errors[0]
    assert errors[0].endswith(f"the same command continues after step {story.saved}")


def test_nothing_is_lost(story):
    assert f"continuing after step {story.saved}" in story.killed.output
    steps = [json.loads(line)["step"] for line in (story.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= story.saved + 2
