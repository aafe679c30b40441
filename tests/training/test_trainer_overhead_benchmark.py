"""The stand-ins of the benchmark of the trainer's own time have everything that the trainer uses of them."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.trainer import FastTrainer

sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
import trainer_overhead

PROGRAM = PROJECT_ROOT / "benchmarks" / "trainer_overhead.py"


def used_of(attribute: str) -> set[str]:
    """Return the names that the trainer's classes, including verl's, read of one of the trainer's attributes."""
    sources = [inspect.getsource(one) for one in FastTrainer.__mro__ if one.__module__.startswith(("rgtrain", "verl"))]
    return set(re.findall(rf"self\.{attribute}\.(\w+)", "\n".join(sources)))


def test_the_rollout_of_the_benchmark_has_all_that_the_trainer_uses():
    used = used_of("agent_loop_manager")
    assert {"generate_sequences", "engine_idle_share"} <= used
    assert sorted(name for name in used if not hasattr(trainer_overhead.InstantRollout, name)) == []


def test_the_timed_methods_are_those_of_the_trainer():
    assert [name for name in trainer_overhead.METHODS if not hasattr(FastTrainer, name)] == []


@pytest.mark.slow
def test_a_step_is_measured_in_parts(tiny_model, tmp_path):
    words = ["--model", str(tiny_model), "--samples", "16", "--tokens", "8", "--workers", "2"]
    words += ["--steps", "1", "--warmup", "1", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run([sys.executable, PROGRAM, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    [parts] = json.loads((tmp_path / "16_samples.json").read_text())["raw"]["seconds"]
    assert {*trainer_overhead.METHODS.values()} - parts.keys() == {"reference log-probabilities", "values"}
