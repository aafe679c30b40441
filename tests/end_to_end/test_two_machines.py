"""Train one model on two machines: cluster/slurm.sbatch starts two nodes of Ray, here both on this machine."""

import json
import os
import subprocess

import pytest
from support.slurm import SCRIPT, slurm_environment

from rgtrain.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow

# Two nodes of one machine must not take the same ports for their workers and agents.
RAY_START_ARGS = "--num-cpus=16 --min-worker-port=0 --max-worker-port=0"


def test_two_nodes_train_one_model(tiny_model, tmp_path):
    settings = {
        "PROJECT": str(PROJECT_ROOT),
        "GPUS_PER_NODE": "1",
        "HARDWARE": "cpu",
        "HEAD_ADDRESS": "127.0.0.1",
        "RAY_START_ARGS": RAY_START_ARGS,
    }
    environment = slurm_environment(tmp_path / "slurm", num_nodes=2, job=os.getpid()) | settings
    words = ["--config-name", "quickstart", "debug=smoke", f"run_dir={tmp_path / 'run'}"]
    words += ["ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null"]
    words += [f"actor_rollout_ref.model.path={tiny_model}"]
    done = subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert max(record["actor/rollout_gap/mean"] for record in records) < 0.1
    calls = (tmp_path / "slurm" / "calls").read_text()
    assert calls.count("ray start") == 2
    assert "scontrol requeue" not in calls
