"""Adapt vLLM on a GPU: use the newer model runner for Qwen2, and warm up only the kernels that rollouts use."""

from collections.abc import Callable

from vllm import SamplingParams

_QWEN2 = "Qwen2ForCausalLM"
# The sampling for which engines are warmed up. While it is None, vLLM chooses.
_rollout_params: SamplingParams | None = None


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
