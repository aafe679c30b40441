"""Ports and names of a run on Ray belong to no other run on the same machine."""

import os
import subprocess
import sys
from pathlib import Path

import verl

# Two machines of a cluster, both here. Bundles are as those of verl's workers.
MASTER_PORTS = """
import socket
from types import SimpleNamespace
from ray.cluster_utils import Cluster
import ray
from ray.util.placement_group import placement_group, placement_group_table
from rgtrain.upstream.ray_names import holding_master_port

def is_held(port):
    with socket.socket() as taker:
        try:
            taker.bind(("", int(port)))
        except OSError:
            return True
    return False

def original(group, pg, bundle_index, master_port_range):
    group._master_addr, group._master_port = "original", str(master_port_range)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address)
bundles = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
ray.get(bundles.ready())
choose = holding_master_port(original)
groups = [SimpleNamespace(_master_addr=None, _master_port=None) for _ in range(3)]
for index, group in enumerate(groups[:2]):
    choose(group, bundles, bundle_index=index)
choose(groups[2], bundles, 0, [5000, 6000])
assert len(set(placement_group_table(bundles)["bundles_to_node_id"].values())) == 2
print([is_held(group._master_port) for group in groups[:2]], groups[2]._master_port)
ray.shutdown()
cluster.shutdown()
"""

JOB_ID = """
from rgtrain.upstream.replacements import apply
apply("stock_launcher", device="cpu")
import ray
ray.init("local", num_cpus=1, include_dashboard=False)

@ray.remote
def job_id():
    return ray.get_runtime_context().get_job_id()

print(ray.get_runtime_context().get_job_id(), ray.get(job_id.remote()))
"""


def run(program: str) -> str:
    """Return the last line that a program prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_port_of_the_workers_is_held_on_the_machine_of_the_first_one():
    assert run(MASTER_PORTS) == "[True, True] [5000, 6000]"


def test_all_processes_of_a_run_know_a_job_id_that_no_new_cluster_would_give():
    of_trainer, of_worker = run(JOB_ID).split()
    assert of_trainer == of_worker != "01000000"


def test_verl_still_names_its_sockets_by_the_job_id():
    folder = Path(verl.__file__).parent / "workers" / "rollout" / "vllm_rollout"
    for file in ("vllm_rollout.py", "utils.py"):
        assert 'f"ipc:///tmp/rl-colocate-zmq-{job_id}-replica-' in (folder / file).read_text()
    assert 'os.environ["VERL_RAY_JOB_ID"] = ray.get_runtime_context()' in (folder / "vllm_async_server.py").read_text()
