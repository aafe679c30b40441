"""The embedded model learns in the real quickstart, with a seed that no published figure used."""

import json
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT


@pytest.mark.slow
def test_held_out_accuracy_rises_by_25_points(tmp_path):
    command = [sys.executable, str(PROJECT_ROOT / "utils" / "quickstart.py"), "--run-dir", str(tmp_path), "seed=11"]
    subprocess.run(command, check=True)
    summaries = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("evaluation/*/summary.json")}
    base, trained = (summaries[f"quickstart_{model}"] for model in ("SmolLM2-135M-Instruct", "hf_step_20"))
    assert base["overall"]["num_problems"] >= 200
    assert trained["overall"]["strict_accuracy"] - base["overall"]["strict_accuracy"] >= 0.25
