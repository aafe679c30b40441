"""A run that changes its number of workers twice makes the steps of one that keeps it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.checkpoint import complete_checkpoint
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.checkpoints.shards.tensors import read_all
from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.checkpointing import CURRICULUM

pytestmark = pytest.mark.slow

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"
# So small that a rounding error, which depends on the number of workers, changes no answer.
LEARNING_RATE = 1e-5
# Metrics that depend on the drawn problems, their answers, the curriculum and the schedule of the learning rate.
SAME = ("train/prompts_crc", "actor/lr", "training/epoch", "critic/score/mean")


class Run:
    """A run with levels, dynamic sampling and an adaptive KL, in parts on different numbers of workers."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        self._words = ["--config-path", str(EXPERIMENTS), "--config-name", "resumed", "hardware=cpu"]
        self._words += [f"actor_rollout_ref.model.path={model}", f"run_dir={folder}"]
        self._words += [f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}"]

    def train(self, *, until: int, num_workers: int) -> None:
        words = [f"trainer.total_training_steps={until}", f"trainer.n_gpus_per_node={num_workers}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), *self._words, *words]
        assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0, self.log()[-5000:]

    def log(self) -> str:
        return (self.folder / "train.log").read_text()

    def steps(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def answers(self, step: int) -> list[str]:
        lines = (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        return [json.loads(line)["output"] for line in lines]

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"global_step_{step}"

    def weights(self, step: int) -> dict[str, np.ndarray]:
        files = RankFiles(complete_checkpoint(self.checkpoint(step) / "actor").rank_files)
        return {name: read_all(files.merge(name)).numpy() for name in files.names}


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


def test_step_data_curriculum_and_learning_rate_continue(kept, changed):
    assert [step["step"] for step in changed.steps()] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(kept.steps(), changed.steps(), strict=True):
        assert {name: other[name] for name in SAME} == pytest.approx({name: one[name] for name in SAME}), one["step"]
    for step in (4, 6):
        one, other = (json.loads((run.checkpoint(step) / CURRICULUM).read_text()) for run in (kept, changed))
        assert one == other


def test_every_answer_is_the_same(kept, changed):
    for step in range(1, 7):
        assert changed.answers(step) == kept.answers(step), step


def test_the_weights_are_the_same_up_to_rounding(kept, changed):
    one, other = kept.weights(6), changed.weights(6)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=0, atol=LEARNING_RATE, err_msg=name)


@pytest.mark.parametrize("step", [4, 6])
def test_the_export_is_verified(changed, tmp_path, step):
    said: list[str] = []
    export(changed.checkpoint(step), tmp_path / "exported", verify=True, say=said.append)
    assert said[0].startswith("verified: the log-probabilities of ")
