"""verl finds the CPU platform in every process, and a workaround that upstream no longer needs is reported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from rgtrain.machine.devices import num_gpus

pytestmark = pytest.mark.skipif(num_gpus() > 0, reason="the CUDA stack is installed")

ENVIRONMENT = os.environ | {"VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu", "VERL_PLATFORM": "cpu"}


# Runs each program that it reads in a new fork, and prints its exit code, stdout and stderr.
FORKS = """
import json, os, sys, tempfile, traceback
import ray, tensordict, torch, transformers
for line in sys.stdin:
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        for file, descriptor in zip(files, (1, 2)):
            os.dup2(file.fileno(), descriptor)
        code = 1
        try:
            exec(json.loads(line), {})
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in files:
        file.seek(0)
    print(json.dumps([code, *(file.read() for file in files)]), flush=True)
"""


@pytest.fixture(scope="module")
def python() -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Yield a function that runs a program in a process with preloaded libraries, which saves most of verl's import."""
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )

    def run(program: str) -> subprocess.CompletedProcess[str]:
        forks.stdin.write(json.dumps(program) + "\n")
        forks.stdin.flush()
        return subprocess.CompletedProcess(program, *json.loads(forks.stdout.readline()))

    with forks:
        yield run
        forks.stdin.close()


def test_verl_runs_on_the_platform_cpu(python):
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
        ("import torch; torch.cpu.empty_cache = print", "obsolete: torch.cpu:empty_cache exists"),
        (
            "import torch; torch.cuda.is_available = lambda: True",
            "torch:Tensor.pin_memory: obsolete: there is a CUDA device",
        ),
        (
            "import importlib.metadata as m; old = m.distribution;"
            "m.distribution = lambda name: old('pip' if name == 'vllm' else name)",
            "a distribution named vllm is installed",
        ),
    ],
)
def test_a_replacement_that_upstream_no_longer_needs_is_reported(python, change, message):
    done = python(f"{change}\nimport verl")
    assert done.returncode != 0
    assert message in done.stderr and "UpstreamChanged" in done.stderr


def test_workers_on_a_cpu_train_with_our_engines(python):
    program = """
import rgtrain.upstream.in_worker
from verl.workers.engine import EngineRegistry
print(*(EngineRegistry.get_engine_cls(kind, "fsdp2").__name__ for kind in ("language_model", "value_model")))
"""
    done = python(program)
    assert done.stdout.split()[-2:] == ["SharedPromptEngine", "CriticEngine"], done.stderr


def test_every_role_of_the_fast_engine_is_applied(python):
    program = """
import verl
from rgtrain.upstream.replacements import apply, declared
from rgtrain.upstream.declaration import Replacement, resolve
roles = ("platform", "trainer", "fast_trainer", "worker", "fast_worker", "rollout")
for role in roles:
    apply(role)
rows = [row for role in roles for row in declared(role, "cpu")]
rows = [row for row in rows if isinstance(row, Replacement) and not row.wraps]
wrong = [row.target for row in rows if resolve(row.target) != resolve(row.replacement)]
print(len(rows), wrong)
"""
    done = python(program)
    number, _, wrong = done.stdout.splitlines()[-1].partition(" ")
    assert (wrong, int(number) > 20) == ("[]", True), done.stderr
