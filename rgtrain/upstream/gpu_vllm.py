"""vLLM on a GPU: its newer model runner for Qwen2 too, and only those kernels compiled that sampling here needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.config import vllm as vllm_config

from rgtrain.upstream.workarounds import still_needed

# What vLLM looks at to choose a runner.
_QWEN2 = SimpleNamespace(
    architectures=["Qwen2ForCausalLM"], runner_type="generate", is_moe=False, is_hybrid=False, is_attention_free=False
)


def take_newer_runner() -> None:
    """Once a process: vLLM 0.24 runs Qwen2 by its older runner, which takes more of Python's time; later ones don't."""
    chosen = VllmConfig._is_default_v2_model_runner_model(SimpleNamespace(model_config=_QWEN2))
    still_needed(not chosen, "vLLM runs Qwen2 by its newer model runner itself")
    vllm_config.DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES |= {"Qwen2ForCausalLM"}


@contextmanager
def warming_up_for(params: SamplingParams) -> Iterator[None]:
    """Within, an engine that starts compiles what `params` need: by itself, penalties, bad words and all else too."""
    of_everything = SamplingParams.for_sampler_warmup
    SamplingParams.for_sampler_warmup = staticmethod(lambda: params)
    try:
        yield
    finally:
        SamplingParams.for_sampler_warmup = staticmethod(of_everything)


@contextmanager
def starting(params: SamplingParams) -> Iterator[None]:
    """Within, this process's engine is started, to sample by `params`."""
    take_newer_runner()
    with warming_up_for(params):
        yield
