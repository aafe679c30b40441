"""Two workers share one vLLM engine by tensor parallelism, on a CPU."""

import json
import os
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.rollout_alarm import LIMITS, ROLLOUT_GAP

pytestmark = pytest.mark.slow


def test_a_tensor_parallel_engine_has_the_weights_in_training(tiny_model, tmp_path):
    run_dir = tmp_path / "run"
    words = ["--config-name", "quickstart", "debug=smoke", "hardware=cpu", "trainer.n_gpus_per_node=2"]
    words += ["actor_rollout_ref.rollout.tensor_model_parallel_size=2", "actor_rollout_ref.rollout.dtype=float32"]
    words += ["actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32"]
    words += [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={run_dir}"]
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), *words]
    done = subprocess.run(command, env=os.environ, stdout=subprocess.DEVNULL)
    assert done.returncode == 0, (run_dir / "train.log").read_text()[-5000:]
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    # The engine starts with other random weights, so the gap is small only after a sync to both workers.
    assert max(step[ROLLOUT_GAP] for step in steps) < LIMITS["float32"]
