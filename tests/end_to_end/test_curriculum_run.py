"""Curriculum levels rise in a training run, are reported and saved, and are restored on resume."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.documented_metrics import undocumented

from rgtrain.checkpoints.validation_outcomes import read_validation_outcomes
from rgtrain.paths import PROJECT_ROOT

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"


def train(run_dir, model, *words: str) -> list[dict]:
    """Start or resume the run, and return its metrics."""
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", str(EXPERIMENTS)]
    command += [
        "--config-name",
        "levels",
        "hardware=cpu",
        f"actor_rollout_ref.model.path={model}",
        f"run_dir={run_dir}",
        *words,
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{(run_dir / 'train.log').read_text()[-4000:]}"
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("levels") / "run"


@pytest.fixture(scope="module")
def runs(tiny_model, run_dir) -> tuple[list[dict], list[dict]]:
    """Return the metrics of a whole run, and of the same run resumed after its last checkpoint was deleted."""
    whole = train(run_dir, tiny_model)
    shutil.rmtree(run_dir / "checkpoints" / "global_step_3")
    (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    return whole, train(run_dir, tiny_model)


def curriculum_metrics(record: dict) -> dict:
    return {name: value for name, value in record.items() if name.startswith("curriculum/")}


def test_levels_rise_with_training_groups_but_not_with_validation(runs):
    # Each step has at least two groups of spell_backward. The 12 validation problems would raise it to the top level.
    levels = [record["curriculum/spell_backward/level"] for record in runs[0]]
    groups = [record["train/spell_backward/num_prompts"] for record in runs[0]]
    assert levels == [min(4, sum(groups[: step + 1]) // 2) for step in range(3)]


def test_success_is_reported_by_level_in_training_and_validation(runs):
    assert "curriculum/spell_backward/success_at_level_0" in runs[0][0]
    validated = {name.split("/")[1] for name in runs[0][-1] if name.startswith("val-core/")}
    assert {"spell_backward_level_0", "spell_backward_level_4", "chain_sum"} <= validated


def test_a_resumed_run_draws_the_same_levels_as_an_uninterrupted_one(runs):
    whole, resumed = runs
    assert [record["step"] for record in resumed] == [1, 2, 3]
    assert curriculum_metrics(resumed[-1]).keys() == curriculum_metrics(whole[-1]).keys()
    assert resumed[-1]["curriculum/spell_backward/level"] == whole[-1]["curriculum/spell_backward/level"]
    assert resumed[-1]["prompt_length/mean"] == whole[-1]["prompt_length/mean"]


def test_every_metric_is_documented(runs):
    assert not undocumented({name for record in runs[0] for name in record})


def test_a_checkpoint_is_validated_on_other_files_without_training(runs, run_dir, tiny_model, tmp_path):
    files = tmp_path / "validation.yaml"
    files.write_text("categories: [{category: a, datasets: [{dataset: chain_sum, size: 3}, {dataset: gcd, size: 2}]}]")
    checkpoint = run_dir / "checkpoints" / "global_step_3"
    words = ["trainer.val_only=true", "trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}"]
    words += [f"data.validation_files=[{files}]", "actor_rollout_ref.rollout.val_kwargs.n=3"]
    words += ["actor_rollout_ref.rollout.val_kwargs.temperature=1", "data.val_batch_size=2"]
    [record] = train(tmp_path / "run", tiny_model, *words)
    assert record["step"] == 3
    assert {"val-core/chain_sum/acc/mean@3", "val-core/gcd/acc/mean@3"} <= record.keys()
    assert not any(name.startswith("train/") for name in record)
    outcomes = read_validation_outcomes(tmp_path / "run", step=3)
    assert {name: [one.num_samples for one in found] for name, found in outcomes.items()} == {
        "chain_sum": [3] * 3,
        "gcd": [3] * 2,
    }
    assert not (tmp_path / "run" / "checkpoints").exists()
