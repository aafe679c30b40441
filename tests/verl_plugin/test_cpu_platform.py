"""verl finds the CPU platform in every process, and each workaround says so once it is no longer needed."""

import os
import subprocess
import sys

import pytest

from rgtrain.devices import num_gpus

pytestmark = pytest.mark.skipif(num_gpus() > 0, reason="the CUDA stack is installed")

ENVIRONMENT = os.environ | {"VERL_USE_EXTERNAL_MODULES": "rgtrain.verl_plugin.cpu_platform", "VERL_PLATFORM": "cpu"}


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT)


def test_verl_runs_on_the_platform_cpu():
    program = """
import verl
from verl.utils.device import get_device_name, get_nccl_backend, get_resource_name, get_torch_device
import torch
assert get_torch_device() is torch.cpu
print(get_device_name(), get_nccl_backend(), get_resource_name())
"""
    done = python(program)
    assert done.stdout.split() == ["cpu", "gloo", "GPU"], done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("import torch; torch.cpu.empty_cache = print", "torch.cpu has empty_cache now"),
        ("import torch; torch.cuda.is_available = lambda: True", "although there is a CUDA device"),
        (
            "import importlib.metadata as m; old = m.distribution;"
            "m.distribution = lambda name: old('pip' if name == 'vllm' else name)",
            "a distribution named vllm is installed",
        ),
    ],
)
def test_a_workaround_that_is_no_longer_needed_says_so(change, message):
    done = python(f"{change}\nimport verl")
    assert done.returncode != 0
    assert message in done.stderr and "WorkaroundObsolete" in done.stderr


def test_verl_has_no_engine_of_its_own_for_the_cpu():
    program = """
import verl
from verl.workers.engine import EngineRegistry
import rgtrain.verl_plugin.engine as ours
assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is ours.SharedPromptEngine
try:
    EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])(ours.SharedPromptEngine)
except AssertionError:
    print("refused")
"""
    done = python(program)
    assert done.stdout.split()[-1:] == ["refused"], done.stderr
