"""A sweep of real trainings runs to its end, and the same command skips the jobs that have finished."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.experiments import EXPERIMENTS

from rgtrain.paths import PROJECT_ROOT


@pytest.mark.slow
def test_two_seeds_are_trained_and_not_repeated(tiny_model: Path, tmp_path: Path):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", str(EXPERIMENTS)]
    command += ["--config-name", "small", "-m", "seed=1,2", "hardware=cpu", "trainer.total_training_steps=2"]
    command += [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={tmp_path}/sweep"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [job["metrics"]["steps"] for job in table["jobs"]] == [2, 2]
    assert table["seed_groups"][0]["num_jobs"] == 2
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("has finished its 2 steps") == 2
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"] == table["jobs"]
