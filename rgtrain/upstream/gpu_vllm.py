"""Adapt vLLM on a GPU: its runner for Qwen2, its warm-up, and its sleep on a GPU that other processes use too."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from vllm import SamplingParams

logger = logging.getLogger(__name__)

_QWEN2 = "Qwen2ForCausalLM"
# The sampling for which engines are warmed up. While it is None, vLLM chooses.
_rollout_params: SamplingParams | None = None
# vLLM's assertion in `Worker.sleep`, after the memory was freed.
_MEMORY_GREW = "Memory usage increased after sleeping."


def with_qwen2(architectures: frozenset[str]) -> frozenset[str]:
    """Add Qwen2 to the architectures that vLLM runs with its newer model runner."""
    return architectures | {_QWEN2}


def warm_up_for(params: SamplingParams) -> None:
    """Limit the warm-up of engines that start later to the kernels that `params` use."""
    global _rollout_params
    _rollout_params = params


def warming_up_for_rollouts(original: Callable[[], SamplingParams]) -> "staticmethod[[], SamplingParams]":
    """Wrap vLLM's choice of sampling parameters for the warm-up so that it returns those of `warm_up_for`."""
    return staticmethod(lambda: _rollout_params or original())


def sleeping_beside_others(original: Callable[[Any, int], None]) -> Callable[..., None]:
    """Wrap vLLM's `Worker.sleep` so that it only warns if another process took the GPU's memory meanwhile."""

    @functools.wraps(original)
    def sleep(self: Any, level: int = 1) -> None:
        try:
            original(self, level)
        except AssertionError as error:
            if str(error) != _MEMORY_GREW:
                raise
            logger.warning("vLLM went to sleep, but the GPU has less free memory; does another process use the GPU?")

    return sleep
