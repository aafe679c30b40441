"""vLLM on a GPU warms up for what rollouts sample, and runs Qwen2 by its newer runner."""

from vllm import SamplingParams

from rgtrain.upstream import gpu_vllm


def test_an_engine_is_warmed_up_for_what_is_sampled_only(monkeypatch):
    monkeypatch.setattr(gpu_vllm, "_rollout_params", None)
    chosen = gpu_vllm.warming_up_for_rollouts(SamplingParams.for_sampler_warmup)
    # vLLM's own, with all that it can do.
    assert chosen().repetition_penalty != 1
    params = SamplingParams(temperature=0.5, max_tokens=64, logprobs=0)
    gpu_vllm.warm_up_for(params)
    assert chosen() is params


def test_qwen2_joins_the_architectures_of_the_newer_runner():
    assert gpu_vllm.with_qwen2(frozenset({"LlamaForCausalLM"})) == {"LlamaForCausalLM", "Qwen2ForCausalLM"}
