"""A run over two Ray nodes, both on this machine, each with a worker that trains and generates."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rgtrain.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def address() -> Iterator[str]:
    """Return the address of a running cluster of two nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 16, "num_gpus": 1})
    try:
        cluster.add_node(num_cpus=16, num_gpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_two_nodes_train_one_model(tiny_model, tmp_path, address):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart", "debug=smoke"]
    command += ["hardware=cpu", f"ray_kwargs.ray_init.address={address}", "ray_kwargs.ray_init.num_cpus=null"]
    command += ["ray_kwargs.ray_init.num_gpus=null", "trainer.nnodes=2", f"run_dir={tmp_path / 'run'}"]
    command += [f"actor_rollout_ref.model.path={tiny_model}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert max(record["actor/rollout_gap/mean"] for record in records) < 0.1
