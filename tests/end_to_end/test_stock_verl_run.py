"""The quickstart with `engine=verl` trains to its end, and continues after its last checkpoint."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.documented_metrics import undocumented

from rgtrain.checkpoints.checkpoint_store import CheckpointStore
from rgtrain.checkpoints.export import export
from rgtrain.paths import PROJECT_ROOT

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"
DATASETS = ("needle_haystack", "spell_backward")
SIZES = ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.n=2"]
SIZES += ["data.validation_size=4", "trainer.total_training_steps=2", "trainer.save_freq=1", "trainer.test_freq=2"]
# A random model solves no problem, so it needs a reward for brevity to learn at all.
REWARD = ["+reward.parts.length={weight: 1, max_len: 16, buffer: 15}"]
# It gets whole groups, although verl scores each completion alone.
REWARD += [r"+reward.parts={pkg\://varied_reward.letters: {weight: 1}}"]
# The level rises after every two groups, even if the model solves nothing.
CURRICULUM = ["~data.mixture.word_sequence_reversal", "+data.mixture.spell_backward={weight: 1}"]
CURRICULUM += ["+data.curriculum.datasets.spell_backward={num_levels: 2, policy: {name: 'pkg://stairs.Stairs'}}"]


def train(run_dir: Path, model: Path, *words: str) -> str:
    """Start or resume the run, and return the lines that it prints."""
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart", "engine=verl"]
    command += ["hardware=cpu", f"actor_rollout_ref.model.path={model}", f"run_dir={run_dir}"]
    search = [str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
    words = (*SIZES, *REWARD, *CURRICULUM, "trainer.val_before_train=true", *words)
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{(run_dir / 'train.log').read_text()[-6000:]}"
    return done.stdout


def metrics_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> tuple[Path, list[dict], str, list[dict], str]:
    """Return the folder, and metrics and output of a whole run and of its continuation after a lost checkpoint."""
    run_dir = tmp_path_factory.mktemp("stock") / "run"
    output = train(run_dir, tiny_model)
    whole = metrics_of(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "global_step_2")
    (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
    continued = train(run_dir, tiny_model)
    return run_dir, whole, output, metrics_of(run_dir), continued


@pytest.mark.slow
def test_the_run_says_which_engine_trains(run):
    assert re.search("engine +verl, ", run[2])


@pytest.mark.slow
def test_every_step_has_metrics_by_dataset_and_reward_part(run):
    _, whole, *_ = run
    assert [record["step"] for record in whole] == [0, 1, 2]
    for dataset in DATASETS:
        names = ("acc", "reward_solved", "reward_length", "reward_letters", "num_failed_letters", "num_scored")
        assert {f"train/{dataset}/{name}" for name in names} <= set(whole[1]) | set(whole[2])
    groups = [
        (whole[1][f"train/{dataset}/num_scored"], whole[1][f"train/{dataset}/reward"])
        for dataset in DATASETS
        if f"train/{dataset}/reward" in whole[1]
    ]
    assert sum(number for number, _ in groups) == 8
    assert whole[1]["critic/rewards/mean"] == pytest.approx(sum(number * reward for number, reward in groups) / 8)
    assert any(name.startswith("val-core/needle_haystack/acc") for name in whole[0])


@pytest.mark.slow
def test_the_curriculum_observes_the_groups_of_every_step(run):
    _, whole, *_ = run
    groups = [record.get("train/spell_backward/num_prompts", 0) for record in whole[1:]]
    levels = [record["curriculum/spell_backward/level"] for record in whole[1:]]
    assert levels == [min(1, sum(groups[: step + 1]) // 2) for step in range(2)]


@pytest.mark.slow
def test_the_run_continues_after_its_last_checkpoint(run):
    run_dir, whole, _, resumed, output = run
    assert "continuing after step 1" in output
    assert [record["step"] for record in resumed] == [0, 1, 2]
    assert resumed[2]["train/prompts_crc"] == whole[2]["train/prompts_crc"]
    assert sorted(CheckpointStore(run_dir / "checkpoints", keep=None, say=print).steps()) == [1, 2]
    assert (run_dir / "checkpoints" / "global_step_2" / "curriculum.json").exists()


@pytest.mark.slow
def test_every_metric_is_documented(run):
    assert not undocumented({name for record in run[1] for name in record})


@pytest.mark.slow
def test_the_export_of_its_last_checkpoint_is_verified_against_the_model_in_training(run, tmp_path):
    said = []
    export(run[0], tmp_path / "exported", verify=True, say=said.append)
    assert said[0].startswith(
        "verified: the log-probabilities of 124 tokens equal those of the model in training within"
    )
