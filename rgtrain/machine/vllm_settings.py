"""What training and evaluation settle for vLLM alike, found out without importing it."""

import ast
import importlib.util
import os
from functools import cache
from pathlib import Path

from rgtrain.errors import ConfigError, choose_from
from rgtrain.machine.devices import num_gpus

_VARIABLE = "VLLM_ATTENTION_BACKEND"


def vllm_environment() -> dict[str, str]:
    """Environment variables that vLLM needs on this machine."""
    if num_gpus() and importlib.util.find_spec("flashinfer") is None:
        return {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {}


def attention_backend() -> str | None:
    """The attention backend that the variable VLLM_ATTENTION_BACKEND names, which vLLM itself no longer reads.

    None where it is unset or empty. Raises ConfigError for a name that the installed vLLM does not know.
    """
    name = os.environ.get(_VARIABLE, "")
    if not name:
        return None
    if num_gpus() == 0:
        raise ConfigError(f"{_VARIABLE}={name}: on a CPU vLLM has one attention only; unset {_VARIABLE}")
    if name not in known_attention_backends():
        raise ConfigError(
            f"{_VARIABLE}={name}: this vLLM has no such backend; {choose_from(name, known_attention_backends())}. "
            f"Models without special attention take FLASH_ATTN, FLASHINFER, TRITON_ATTN or FLEX_ATTENTION; with "
            f"{_VARIABLE} unset vLLM chooses"
        )
    return name


@cache
def known_attention_backends() -> frozenset[str]:
    """The names in vLLM's own list, read from its source: importing vLLM takes many seconds."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        raise ConfigError("vllm is not installed: run `bash train.sh setup`")
    source = (Path(package.origin).parent / "v1/attention/backends/registry.py").read_text()
    [listing] = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "AttentionBackendEnum"
    )
    targets = (node.targets[0] for node in listing.body if isinstance(node, ast.Assign))
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))
