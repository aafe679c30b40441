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
    if num_gpus() and importlib.util.find_spec("flashinfer") is None:
        return {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {}


def attention_backend() -> str | None:
    """Return the attention backend that the environment variable VLLM_ATTENTION_BACKEND names.

    vLLM itself ignores the variable, but guides for older versions still name it.

    Returns:
        The name of a backend; None if the variable is unset or empty.

    Raises:
        ConfigError: The installed vLLM has no such backend, or runs on a CPU and has no choice of backends.
    """
    name = os.environ.get(_VARIABLE, "")
    if not name:
        return None
    if num_gpus() == 0:
        raise ConfigError(f"{_VARIABLE} is {name}, but on a CPU vLLM has only one attention backend; unset it")
    if name not in known_attention_backends():
        raise ConfigError(
            f"{_VARIABLE} is {name}, but this vLLM has no such backend; "
            f"{choose_from(name, known_attention_backends())}. "
            "For models without special attention, use FLASH_ATTN, FLASHINFER, TRITON_ATTN or FLEX_ATTENTION, or unset "
            f"{_VARIABLE} to let vLLM choose"
        )
    return name


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
