"""Train one model on two machines: cluster/slurm.sbatch starts two nodes of Ray, here both on this machine."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.slurm import SCRIPT, slurm_environment

from rgtrain.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow

SETTINGS = {
    "PROJECT": str(PROJECT_ROOT),
    "GPUS_PER_NODE": "1",
    "HARDWARE": "cpu",
    "HEAD_ADDRESS": "127.0.0.1",
    # Two nodes of one machine must not take the same ports for their workers and agents.
    "RAY_START_ARGS": "--num-cpus=16 --min-worker-port=0 --max-worker-port=0",
}


class TwoNodes:
    """A job of the Slurm script in `folder`: two nodes that train a tiny model."""

    def __init__(self, folder: Path, model: Path, *words: str):
        self.folder = folder
        self.words = ["--config-name", "quickstart", "debug=smoke", f"run_dir={folder / 'run'}", *words]
        self.words += ["ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null"]
        self.words += [f"actor_rollout_ref.model.path={model}"]

    def start(self, name: str) -> subprocess.Popen:
        environment = slurm_environment(self.folder / name, num_nodes=2, job=os.getpid()) | SETTINGS
        with (self.folder / name / "output").open("w") as output:
            return subprocess.Popen(
                ["bash", SCRIPT, *self.words], stdout=output, stderr=output, cwd=self.folder, env=environment
            )

    def run(self, name: str) -> int:
        return self.start(name).wait(timeout=400)

    def calls(self, name: str) -> str:
        return (self.folder / name / "calls").read_text()

    def output(self, name: str) -> str:
        return (self.folder / name / "output").read_text()

    @property
    def records(self) -> list[dict]:
        file = self.folder / "run" / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_two_nodes_train_one_model(tiny_model, tmp_path):
    job = TwoNodes(tmp_path, tiny_model)
    assert job.run("slurm") == 0, job.output("slurm")
    assert [record["step"] for record in job.records] == [1, 2]
    assert max(record["actor/rollout_gap/mean"] for record in job.records) < 0.1
    assert job.calls("slurm").count("ray start") == 2
    assert "scontrol requeue" not in job.calls("slurm")


def test_two_nodes_are_requeued_on_term_and_continue(tiny_model, tmp_path):
    job = TwoNodes(tmp_path, tiny_model, "trainer.total_training_steps=6")
    first = job.start("first")
    until = time.monotonic() + 300
    while not job.records:
        assert first.poll() is None and time.monotonic() < until, job.output("first")
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 75, job.output("first")
    assert "scontrol requeue" in job.calls("first")
    stopped_after = job.records[-1]["step"]
    assert stopped_after < 6
    assert job.run("second") == 0, job.output("second")
    assert [record["step"] for record in job.records] == [1, 2, 3, 4, 5, 6]
