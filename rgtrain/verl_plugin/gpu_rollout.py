"""vLLM on a GPU: its newer model runner for Qwen2 too, and only those kernels compiled that sampling here needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from vllm import SamplingParams
from vllm.config import vllm as vllm_config

from rgtrain.verl_plugin.workarounds import still_needed


def take_newer_runner() -> None:
    """vLLM 0.24 keeps Qwen2 on its older runner, which takes more of Python's time; later ones no dense model."""
    known = vllm_config.DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES
    still_needed("Qwen2ForCausalLM" not in known, "vLLM runs Qwen2 by its newer model runner itself")
    vllm_config.DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES = known | {"Qwen2ForCausalLM"}


@contextmanager
def warming_up_for(params: SamplingParams) -> Iterator[None]:
    """Within, an engine that starts compiles what `params` need: by itself, penalties, bad words and all else too."""
    of_everything = SamplingParams.for_sampler_warmup
    SamplingParams.for_sampler_warmup = staticmethod(lambda: params)
    try:
        yield
    finally:
        SamplingParams.for_sampler_warmup = staticmethod(of_everything)
