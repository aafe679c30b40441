"""What vLLM inside the worker is given: seeds for both of its runners, and only the kernels that sampling needs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm
from verl.workers.config import RolloutConfig
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.config import vllm as vllm_config

from rgtrain.verl_plugin import gpu_rollout, vllm_rollout
from rgtrain.verl_plugin.decoding_scheduler import DecodingScheduler
from rgtrain.verl_plugin.vllm_rollout import VllmRollout, engine_arguments
from rgtrain.verl_plugin.workarounds import WorkaroundObsolete


def drawn_after(seed: int) -> tuple[float, float]:
    """What vLLM's runners would draw, the newer from numpy and the older from torch."""
    rollout = SimpleNamespace(_engine=SimpleNamespace(reset_prefix_cache=lambda: None))
    VllmRollout.generate(rollout, [], {"n": 2}, seed=seed, finished=lambda groups: None)
    return np.random.random(), torch.rand(()).item()


def test_what_is_sampled_depends_on_the_seed_alone():
    first = drawn_after(2**62 - 1)
    np.random.random(5)
    torch.rand(5)
    assert drawn_after(2**62 - 1) == first
    assert drawn_after(7) != first


def test_an_engine_is_warmed_up_for_what_is_sampled_only():
    rollout = SimpleNamespace(config=SimpleNamespace(ignore_eos=False))
    params = VllmRollout._sampling_params(rollout, {"temperature": 0.5, "top_p": 1.0, "top_k": -1}, max_tokens=64)
    with pytest.raises(RuntimeError, match="no memory"), gpu_rollout.warming_up_for(params):
        assert SamplingParams.for_sampler_warmup() is params
        raise RuntimeError("no memory")
    # vLLM's own, with all that it can do.
    assert SamplingParams.for_sampler_warmup().repetition_penalty != 1
    assert params.max_tokens == 64, "vLLM makes requests of these as they are"
    assert (params.logprobs, params.repetition_penalty, params.prompt_logprobs) == (0, 1, None)


def chosen_by_list(config: SimpleNamespace) -> bool:
    """vLLM 0.24's rule."""
    return not vllm_config.DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES.isdisjoint(config.model_config.architectures)


def test_qwen2_takes_the_newer_runner_until_vllm_does_so_itself(monkeypatch):
    monkeypatch.setattr(vllm_config, "DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES", frozenset({"LlamaForCausalLM"}))
    monkeypatch.setattr(VllmConfig, "_is_default_v2_model_runner_model", chosen_by_list)
    gpu_rollout.take_newer_runner()
    taken = vllm_config.DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES
    assert taken == {"LlamaForCausalLM", "Qwen2ForCausalLM"}
    with pytest.raises(WorkaroundObsolete, match="Qwen2"):
        gpu_rollout.take_newer_runner()


@pytest.mark.skipif(vllm.__version__.startswith("0.24."), reason="this vLLM needs the workaround")
def test_a_vllm_that_takes_it_for_every_dense_model_is_noticed():
    with pytest.raises(WorkaroundObsolete, match="Qwen2"):
        gpu_rollout.take_newer_runner()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, DecodingScheduler),
        ({"seed": 3, "async_scheduling": None}, DecodingScheduler),
        ({"async_scheduling": False}, None),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, None),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "vllm.v1.core.sched.scheduler.Scheduler"),
    ],
)
def test_steps_are_planned_the_short_way_unless_vllm_is_told_otherwise(monkeypatch, settings, expected):
    monkeypatch.setattr(vllm_rollout, "scheduler", DecodingScheduler)
    config = RolloutConfig(name="vllm", engine_kwargs={"vllm": settings})
    assert engine_arguments(config, "model", replica=0)["scheduler_cls"] == expected
