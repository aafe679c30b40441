"""vLLM settings that training and evaluation share, determined without importing vLLM."""

import ast
import importlib.util
import os
from functools import cache
from pathlib import Path

from rgtrain.errors import ConfigError, choose_from
from rgtrain.machine.devices import num_gpus
from rgtrain.paths import setup_command

_VARIABLE = "VLLM_ATTENTION_BACKEND"


def vllm_environment() -> dict[str, str]:
    """Return the environment variables that vLLM needs on this machine."""
    if num_gpus() == 0:
        return {}
    # The numbers in CUDA_VISIBLE_DEVICES are those of nvidia-smi. By default, CUDA numbers different GPUs by speed.
    environment = {"CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}
    if importlib.util.find_spec("flashinfer") is None:
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return environment


def attention_backend() -> str | None:
    """Return the attention backend that the environment variable VLLM_ATTENTION_BACKEND names.

    vLLM itself ignores the variable, but guides for older versions still name it.

    Returns:
        The name of a backend as vLLM spells it. None if vLLM chooses: the variable is unset, or
        `attention_backend_warning` says why its value has no effect.
    """
    name = os.environ.get(_VARIABLE, "").strip().upper()
    return name if name and num_gpus() and name in known_attention_backends() else None


def attention_backend_warning() -> str | None:
    """Return a warning if the value of VLLM_ATTENTION_BACKEND has no effect, otherwise None."""
    given = os.environ.get(_VARIABLE, "").strip()
    if not given or attention_backend() is not None:
        return None
    if num_gpus() == 0:
        return f"{_VARIABLE}={given} has no effect, because on a CPU vLLM has only one attention backend; unset it"
    return (
        f"{_VARIABLE}={given} has no effect, because the installed vLLM has no such backend, so vLLM chooses one; "
        f"unset it, or set a name that this vLLM has {choose_from(given.upper(), known_attention_backends())}"
    )


@cache
def known_attention_backends() -> frozenset[str]:
    """Return the names of vLLM's attention backends, read from its source because importing vLLM takes seconds."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        raise ConfigError(f"vllm is not installed; run `{setup_command()}`")
    source = (Path(package.origin).parent / "v1/attention/backends/registry.py").read_text()
    [listing] = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "AttentionBackendEnum"
    )
    targets = (node.targets[0] for node in listing.body if isinstance(node, ast.Assign))
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))
