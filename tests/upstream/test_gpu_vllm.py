"""On a GPU, vLLM's warm-up has only rollouts' kernels, Qwen2 has the newer runner, and other processes may allocate."""

import pytest
from vllm import SamplingParams

from rgtrain.upstream import gpu_vllm
from rgtrain.upstream.declaration import source_text


def test_an_engine_is_warmed_up_for_the_sampling_of_rollouts_only(monkeypatch):
    monkeypatch.setattr(gpu_vllm, "_rollout_params", None)
    chosen = gpu_vllm.warming_up_for_rollouts(SamplingParams.for_sampler_warmup)
    # vLLM's choice uses all features.
    assert chosen().repetition_penalty != 1
    params = SamplingParams(temperature=0.5, max_tokens=64, logprobs=0)
    gpu_vllm.warm_up_for(params)
    assert chosen() is params


def test_qwen2_joins_the_architectures_of_the_newer_runner():
    assert gpu_vllm.with_qwen2(frozenset({"LlamaForCausalLM"})) == {"LlamaForCausalLM", "Qwen2ForCausalLM"}


def test_the_engine_sleeps_although_another_process_allocates_meanwhile():
    levels = []

    def sleep(worker, level):
        levels.append(level)
        raise AssertionError("Memory usage increased after sleeping.")

    assert "Memory usage increased after sleeping." in source_text("vllm.v1.worker.gpu_worker:Worker.sleep")
    gpu_vllm.sleeping_beside_others(sleep)("worker", level=2)
    assert levels == [2]


def test_other_failures_of_sleep_are_raised():
    def sleep(worker, level):
        raise AssertionError("the weights are in use")

    with pytest.raises(AssertionError, match="the weights are in use"):
        gpu_vllm.sleeping_beside_others(sleep)("worker", level=2)
