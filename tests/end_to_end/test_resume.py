"""A run with dynamic sampling that is killed and loses a worker is bit-identical to an uninterrupted one.

With --slow, it also is with two workers.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.documented_metrics import undocumented
from support.run_processes import run_environment
from verl.trainer.ppo.core_algos import AdaptiveKLController

from rgtrain.checkpoints.trained_problems import TRAINED_PROBLEMS
from rgtrain.checkpoints.validation_outcomes import read_validation_outcomes
from rgtrain.errors import ConfigError
from rgtrain.machine.orphan_cleanup import RUN_ID, processes_of
from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.checkpointing import KL_COEFFICIENT, load_kl_coefficient

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"
# Metrics that depend on time or on the machine.
MEASURED = ("time", "timing", "score_seconds", "perf/", "actor/perf", "actor/mfu", "memory", "engine_idle_share")


SECRET = "a5ecre7word"


class Run:
    """One run in its folder, which can be started several times."""

    def __init__(self, folder: Path, model: Path, *words: str):
        self.folder = folder
        self._command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", str(EXPERIMENTS)]
        self._command += ["--config-name", "resumed", "hardware=cpu", f"actor_rollout_ref.model.path={model}"]
        self._command += [f"run_dir={folder}", "trainer.logger=[tensorboard,wandb]"]
        self._command += [f"+ray_kwargs.ray_init.runtime_env.env_vars.HUB_TOKEN={SECRET}", *words]
        # The mark of each interrupted start's processes, and the number of those that outlived the first process.
        self.num_orphans: dict[str, int] = {}

    def start(self) -> subprocess.Popen:
        search = [str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
        with self.terminal.open("w") as output:
            return subprocess.Popen(
                self._command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def terminal(self) -> Path:
        """The file with the terminal's output of the last start."""
        return self.folder.with_name("terminal.txt")

    def finish(self) -> None:
        assert self.start().wait() == 0, self.log()[-5000:]

    def kill_once(self, reached: Callable[["Run"], bool]) -> None:
        """Start the run, and kill its first process, but none of the others, when it has `reached` a moment."""
        process = self.start()
        run_id = self._wait_for(reached, process)
        process.kill()
        self.num_orphans[run_id] = len(list(processes_of(run_id)))
        process.wait()

    def kill_worker_once(self, reached: Callable[["Run"], bool]) -> None:
        """Start the run, and kill its worker when it has `reached` a moment. The run then ends."""
        process = self.start()
        run_id = self._wait_for(reached, process)
        os.kill(worker_of(run_id), signal.SIGKILL)
        self.code_without_worker, self.output_without_worker = process.wait(), self.terminal.read_text()
        self.num_orphans[run_id] = 0

    def _wait_for(self, reached: Callable[["Run"], bool], process: subprocess.Popen) -> str:
        """Wait until the run has `reached` a moment, and return the mark of its processes."""
        run_id = None
        while not reached(self):
            assert process.poll() is None, self.terminal.read_text() + self.log()[-5000:]
            run_id = run_id or run_environment(process.pid).get(RUN_ID)
            time.sleep(0.002)
        return run_id

    def log(self) -> str:
        return (self.folder / "train.log").read_text()

    def steps(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def answers(self, step: int) -> str:
        """Return prompts, answers and their rewards in the order of drawing."""
        return (self.folder / "rollouts" / f"{step}.jsonl").read_text()

    def validation_answers(self, step: int) -> list[dict]:
        lines = (self.folder / "validations" / f"{step}.jsonl").read_text().splitlines()
        return [reproducible_values(json.loads(line)) for line in lines]

    def last_saved(self) -> int:
        file = self.folder / "checkpoints" / "latest_checkpointed_iteration.txt"
        return int(file.read_text()) if file.exists() else 0

    def final(self, name: str) -> dict[str, dict]:
        """Load a part of the last checkpoint, by the name of each worker's file."""
        files = (self.folder / "checkpoints" / "global_step_6" / "actor").glob(f"{name}_world_size_*_rank_*.pt")
        return {file.name: torch.load(file, weights_only=False) for file in sorted(files)}


def worker_of(run_id: str) -> int:
    """Return the process that trains and generates."""
    pids = processes_of(run_id)
    return next(pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::WorkerDict"))


def during_the_checkpoint_of_step_4(run: Run) -> bool:
    files = (run.folder / "checkpoints" / ".saving").glob("global_step_4/actor/model_*")
    return any(file.stat().st_size for file in files)


def before_the_validation_of_step_4(run: Run) -> bool:
    """Return whether step 4, which ends an epoch, has been saved."""
    return run.last_saved() == 4


@pytest.fixture(
    scope="module", params=[pytest.param(1, id="1 worker"), pytest.param(2, id="2 workers", marks=pytest.mark.slow)]
)
def num_workers(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory, num_workers) -> Run:
    run = Run(tmp_path_factory.mktemp("whole") / "run", tiny_model, f"trainer.n_gpus_per_node={num_workers}")
    run.finish()
    return run


@pytest.fixture(scope="module")
def killed(tiny_model, tmp_path_factory, num_workers) -> Run:
    run = Run(tmp_path_factory.mktemp("killed") / "run", tiny_model, f"trainer.n_gpus_per_node={num_workers}")
    run.kill_once(during_the_checkpoint_of_step_4)
    assert (run.last_saved(), run.steps()[-1]["step"]) == (2, 3)
    run.kill_worker_once(before_the_validation_of_step_4)
    assert (run.last_saved(), run.steps()[-1]["step"]) == (4, 3)
    run.finish()
    return run


def test_the_killed_run_resumed_twice(killed):
    resumed_lines = [line for line in killed.log().splitlines() if "continuing after step" in line]
    assert [int(line.split()[-1]) for line in resumed_lines] == [2, 4]


def test_all_metrics_of_every_step_are_the_same(whole, killed):
    """The validation of step 4, which the killed run had to repeat, is included."""
    assert [step["step"] for step in killed.steps()] == [1, 2, 3, 4, 5, 6]
    validated = [step["step"] for step in killed.steps() if any(name.startswith("val-core/") for name in step)]
    assert validated == [4, 6]
    for one, other in zip(whole.steps(), killed.steps(), strict=True):
        assert reproducible_values(one) == reproducible_values(other)


def test_a_dead_worker_ends_the_run_with_one_line_that_says_why(killed):
    assert killed.code_without_worker == 1
    errors = [line for line in killed.output_without_worker.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "a training worker died in " in errors[0]
    assert errors[0].endswith("the same command continues after step 4")


def test_a_killed_run_leaves_no_process_behind(killed):
    assert len(killed.num_orphans) == 2
    assert max(killed.num_orphans.values()) > 5
    assert [pid for run_id in killed.num_orphans for pid in processes_of(run_id)] == []


def test_the_problems_of_all_steps_are_recorded(whole, killed):
    records = [
        (run.folder / "checkpoints" / "global_step_6" / TRAINED_PROBLEMS).read_text().split() for run in (whole, killed)
    ]
    assert records[0] == records[1] != []


def test_levels_rise_with_training_groups(whole):
    levels = [step["curriculum/spell_backward/level"] for step in whole.steps()]
    trained = [step.get("train/spell_backward/num_prompts", 0) for step in whole.steps()]
    # Groups that dynamic sampling drops also count.
    assert all(level >= min(4, sum(trained[: step + 1]) // 2) for step, level in enumerate(levels))
    assert levels == sorted(levels)
    assert levels[0] < levels[-1] == 4


def test_success_is_reported_by_level_in_training_and_validation(whole):
    first, *_, last = whole.steps()
    assert "curriculum/spell_backward/success_at_level_0" in first
    validated = {name.split("/")[1] for name in last if name.startswith("val-core/")}
    assert {"spell_backward_level_0", "spell_backward_level_4"} <= validated


def test_every_metric_is_documented(whole):
    assert not undocumented({name for step in whole.steps() for name in step})


def test_a_checkpoint_is_validated_on_other_files_without_training(whole, tiny_model, tmp_path):
    files = tmp_path / "validation.yaml"
    files.write_text("categories: [{category: a, datasets: [{dataset: chain_sum, size: 3}, {dataset: gcd, size: 2}]}]")
    checkpoint = whole.folder / "checkpoints" / "global_step_6"
    words = ["trainer.val_only=true", "trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}"]
    words += [f"data.validation_files=[{files}]", "actor_rollout_ref.rollout.val_kwargs.n=3", "data.val_batch_size=2"]
    run = Run(tmp_path / "run", tiny_model, *words)
    run.finish()
    [record] = run.steps()
    assert record["step"] == 6
    assert {"val-core/chain_sum/acc/mean@3", "val-core/gcd/acc/mean@3"} <= record.keys()
    assert not any(name.startswith("train/") for name in record)
    outcomes = read_validation_outcomes(run.folder, step=6)
    assert {name: [one.num_samples for one in found] for name, found in outcomes.items()} == {
        "chain_sum": [3] * 3,
        "gcd": [3] * 2,
    }
    assert not (run.folder / "checkpoints").exists()


def test_the_metrics_change_as_the_run_learns(whole):
    steps = whole.steps()
    for name in ("actor/pg_loss", "actor/grad_norm", "train/prompts_crc", "actor/lr", "actor/reward_kl_penalty_coeff"):
        assert len({step[name] for step in steps}) > 3, name


def test_prompts_are_redrawn_and_more_of_them_than_needed(whole):
    for name in ("evicted_samples", "discarded_surplus_samples"):
        assert any(step.get(f"training/filter_groups/{name}") for step in whole.steps()), name


def test_each_validation_samples_other_answers(whole):
    at_4, at_6 = (whole.validation_answers(step) for step in (4, 6))
    assert [answer["input"] for answer in at_4] == [answer["input"] for answer in at_6]
    assert [answer["output"] for answer in at_4] != [answer["output"] for answer in at_6]
    # Each problem has two answers, which are sampled separately.
    assert any(first["output"] != second["output"] for first, second in zip(at_4[::2], at_4[1::2], strict=True))


def test_every_answer_is_the_same(whole, killed):
    for step in range(1, 7):
        assert whole.answers(step) == killed.answers(step)
    for step in (4, 6):
        assert whole.validation_answers(step) == killed.validation_answers(step)


@pytest.mark.parametrize("part", ["model", "optim", "extra_state"])
def test_the_last_checkpoint_is_the_same(whole, killed, num_workers, part):
    assert len(whole.final(part)) == num_workers
    assert flat(whole.final(part)) == flat(killed.final(part))


def test_all_starts_belong_to_one_wandb_run(killed):
    starts = list((killed.folder / "wandb").glob("offline-run-*"))
    assert len({start.name.rsplit("-", 1)[1] for start in starts}) == 1 < len(starts)


def test_no_file_of_a_run_contains_a_secret_of_its_command_line(killed):
    files = [file for file in killed.folder.rglob("*") if file.is_file()]
    assert {"config.yaml", "provenance.jsonl", "train.log"} <= {file.name for file in files}
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("content", [None, "", "null", "NaN", '"0.1"', "{}"])
def test_a_checkpoint_without_the_adaptive_kl_coefficient_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / KL_COEFFICIENT).write_text(content)
    with pytest.raises(ConfigError, match="does not hold the coefficient of the adaptive KL reward"):
        load_kl_coefficient(AdaptiveKLController(0.1, target_kl=0.1, horizon=10), tmp_path)


def reproducible_values(step: dict) -> dict:
    return {name: value for name, value in step.items() if not any(part in name for part in MEASURED)}


def flat(state) -> list:
    """Return all leaves of a checkpoint, with tensors as bytes."""
    if isinstance(state, torch.Tensor):
        local = state.to_local() if hasattr(state, "to_local") else state
        return [local.numpy().tobytes()]
    if isinstance(state, dict):
        return [leaf for name, value in state.items() for leaf in (name, *flat(value))]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in flat(value)]
    return [state.tobytes() if hasattr(state, "tobytes") else state]
