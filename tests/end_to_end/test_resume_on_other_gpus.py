"""A run that changes its number of workers twice draws the problems of one that keeps it, and exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.checkpoint import complete_checkpoint, files_beside
from rgtrain.checkpoints.shards.optimizer_shards import OptimizerShards
from rgtrain.checkpoints.shards.tensors import read_all
from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.checkpointing import CURRICULUM

pytestmark = pytest.mark.slow

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"
# Answers depend on the number of workers, because each one samples its prompts with its own seed.
INDEPENDENT_OF_ANSWERS = ("train/prompts_crc", "actor/lr", "training/epoch")


class Run:
    """A run whose levels rise with each step, in parts on different numbers of workers."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        self._words = ["--config-path", str(EXPERIMENTS), "--config-name", "levels", "hardware=cpu"]
        self._words += [f"actor_rollout_ref.model.path={model}", f"run_dir={folder}"]
        self._words += ["actor_rollout_ref.actor.optim.lr_warmup_steps=9", "trainer.save_freq=2", "trainer.test_freq=6"]

    def train(self, *, until: int, num_workers: int) -> None:
        words = [f"trainer.total_training_steps={until}", f"trainer.n_gpus_per_node={num_workers}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), *self._words, *words]
        assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0, self.log()[-5000:]

    def log(self) -> str:
        return (self.folder / "train.log").read_text()

    def steps(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"global_step_{step}"


@pytest.fixture(scope="module")
def kept(tiny_model, tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("kept") / "run", tiny_model)
    run.train(until=6, num_workers=1)
    return run


@pytest.fixture(scope="module")
def changed(tiny_model, tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("changed") / "run", tiny_model)
    for until, num_workers in ((2, 1), (4, 2), (6, 1)):
        run.train(until=until, num_workers=num_workers)
    return run


def test_each_change_is_announced(changed):
    announced = [line.split("] ")[-1] for line in changed.log().splitlines() if "resuming a checkpoint of" in line]
    assert announced == ["resuming a checkpoint of 1 worker on 2", "resuming a checkpoint of 2 workers on 1"]


def test_steps_problems_and_learning_rate_continue(kept, changed):
    assert [step["step"] for step in changed.steps()] == [1, 2, 3, 4, 5, 6]
    for name in INDEPENDENT_OF_ANSWERS:
        expected = [step[name] for step in kept.steps()]
        assert [step[name] for step in changed.steps()] == expected, name
        assert len(set(expected)) > 1, name


@pytest.mark.parametrize("step", [4, 6])
def test_the_curriculum_continues(kept, changed, step):
    one, other = (json.loads((run.checkpoint(step) / CURRICULUM).read_text()) for run in (kept, changed))
    assert one == other
    assert one["policies"]["spell_backward"]["state"]["num_groups"] > 2


@pytest.mark.parametrize("step", [4, 6])
def test_the_optimizer_has_counted_all_steps(changed, step):
    model_files = complete_checkpoint(changed.checkpoint(step) / "actor").rank_files
    stored = OptimizerShards(files_beside(model_files, "optim"), is_verified=False)
    assert {float(read_all(tensor.whole)) for tensor in stored.tensors() if tensor.key == "step"} == {step}


@pytest.mark.parametrize("step", [4, 6])
def test_the_export_is_verified(changed, tmp_path, step):
    said: list[str] = []
    export(changed.checkpoint(step), tmp_path / "exported", verify=True, say=said.append)
    assert said[0].startswith("verified: the log-probabilities of ")
