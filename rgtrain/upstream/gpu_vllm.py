"""vLLM on a GPU: its newer model runner for Qwen2 too, and a warm-up of only those kernels that rollouts use."""

from collections.abc import Callable

from vllm import SamplingParams

_QWEN2 = "Qwen2ForCausalLM"
# The sampling that an engine is to be warmed up for; vLLM's own choice until it is known.
_rollout_params: SamplingParams | None = None


def with_qwen2(architectures: frozenset[str]) -> frozenset[str]:
    """Return the architectures that vLLM runs by its newer model runner, Qwen2 among them."""
    return architectures | {_QWEN2}


def warm_up_for(params: SamplingParams) -> None:
    """Let engines that start from now on compile the kernels that `params` need, and no others."""
    global _rollout_params
    _rollout_params = params


def warming_up_for_rollouts(original: Callable[[], SamplingParams]) -> "staticmethod[[], SamplingParams]":
    """Return vLLM's choice of sampling to warm up for, which obeys `warm_up_for`."""
    return staticmethod(lambda: _rollout_params or original())
