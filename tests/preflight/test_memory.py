"""The memory estimate agrees with the memory that the real modules use."""

import inspect
from dataclasses import replace

import pytest
import torch
from peft.tuners.lora.layer import Linear
from support.live_bytes import LiveBytes, kernel_attention
from support.memory_settings import SETTINGS

from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight import memory
from rgtrain.preflight.sizes import ModelSize

TOKENS = SETTINGS.max_micro_batch_tokens


def model_of(shape: dict, *, lora_rank: int, checkpointing: bool) -> tuple:
    """Return the decoder on the meta device, and all its tensors that exist before a step."""
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register("kernel", kernel_attention)
    with torch.device("meta"):
        config = AutoConfig.for_model(**shape)
        config._attn_implementation = "kernel"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora_rank:
            model.enable_input_require_grads()
            adapters = LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
            get_peft_model(model, adapters, autocast_adapter_dtype=False)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    known = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]
    return model.model, known


def measured(shape: dict, *, lora_rank: int, checkpointing: bool) -> tuple[int, int]:
    """Return the bytes kept after the decoder's forward pass, and the peak until the end of the backward pass."""
    decoder, known = model_of(shape, lora_rank=lora_rank, checkpointing=checkpointing)
    ids = torch.zeros((1, TOKENS), dtype=torch.long, device="meta")
    with LiveBytes(known) as live:
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
        kept = live.now
        hidden.sum().backward()
    return kept, live.peak


@pytest.mark.parametrize("lora_rank", [0, 32])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-1.5b", "qwen3-0.6b", "llama3.2-1b"])
def test_estimated_activations_equal_those_of_the_real_modules(name, checkpointing, lora_rank, monkeypatch):
    # The estimate is for PEFT's own layers. Another test may have replaced them by ours, which keep a little less.
    monkeypatch.setattr(Linear, "forward", inspect.unwrap(Linear.forward))
    # Logits are left out: GPU kernels compute them, whose tensors can't be counted here.
    shape = SHAPES[name] | {"num_hidden_layers": 8, "vocab_size": 64}
    size = ModelSize.of(shape)
    settings = replace(SETTINGS, lora_rank=lora_rank, checkpointing=checkpointing)
    kept, peak = measured(shape, lora_rank=lora_rank, checkpointing=checkpointing)
    # The norm after the last layer, in fp32 and bf16.
    expected = memory.activation_bytes(size, settings) + (6 if lora_rank else 8) * size.hidden * TOKENS
    if checkpointing:
        expected -= memory.token_activation_bytes(size, settings) * TOKENS
    assert kept == pytest.approx(expected, rel=0.03)
    assert peak == pytest.approx(memory.working_peak(size, settings, gpu_bytes=80e9), rel=0.05)


def test_gradients_reduced_once_count_both_unsharded_and_sharded():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"])
    states = memory.model_states(size, replace(SETTINGS, num_gpus=4, sync_once=True))
    assert states["weights"] == size.total
    assert states["gradients"] == 4 * size.total + size.total


def test_states_are_sharded_over_gpus_and_doubled_by_a_critic():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"])
    alone = sum(memory.model_states(size, SETTINGS).values())
    assert alone == pytest.approx(16 * size.total)
    assert sum(memory.model_states(size, replace(SETTINGS, num_gpus=4)).values()) == pytest.approx(alone / 4)
    # With hybrid sharding, each machine holds a whole copy.
    hybrid = replace(SETTINGS, num_gpus=16, num_machines=4, fsdp_size=4)
    assert sum(memory.model_states(size, hybrid).values()) == pytest.approx(alone / 4)
    assert sum(memory.model_states(size, replace(SETTINGS, has_critic=True)).values()) == pytest.approx(2 * alone)
    assert sum(memory.model_states(size, replace(SETTINGS, cpu_offload=True)).values()) == 0


def test_a_machine_offloads_each_of_its_copies_of_the_states():
    size = ModelSize.of(SHAPES["qwen2.5-7b"])
    eight = replace(SETTINGS, num_gpus=8, param_bytes=4)
    for changes in ({"param_offload": True, "optimizer_offload": True}, {"cpu_offload": True}):
        offloading = replace(eight, **changes)
        whole = memory.offloaded_bytes(size, offloading)
        assert whole == pytest.approx((16 if offloading.cpu_offload else 12) * size.total)
        for fsdp_size, copies in ((8, 1), (4, 2), (2, 4), (1, 8)):
            hybrid = replace(offloading, fsdp_size=fsdp_size)
            assert memory.offloaded_bytes(size, hybrid) == pytest.approx(copies * whole)
        # Two machines share one copy, or have one each.
        two_machines = replace(offloading, num_machines=2)
        assert memory.offloaded_bytes(size, two_machines) == pytest.approx(whole / 2)
        assert memory.offloaded_bytes(size, replace(two_machines, fsdp_size=4)) == pytest.approx(whole)


def test_parameters_that_stay_gathered_are_those_of_the_whole_model():
    size = ModelSize.of(SHAPES["qwen2.5-7b"])
    kept, resharded = (memory.gathered_bytes(size, replace(SETTINGS, reshard=reshard)) for reshard in (False, True))
    # Resharding keeps two layers, and either the embedding or the output layer.
    assert kept - resharded == pytest.approx(2 * ((size.num_layers - 2) * size.layer + size.outside_layers / 2))
    # Frozen weights are gathered too, but have no gradients.
    adapters = memory.gathered_bytes(size, replace(SETTINGS, reshard=False, lora_rank=32))
    assert 2 * size.total < adapters < kept


def test_vllm_that_stays_awake_counts_during_updates():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"])
    asleep, awake = (
        memory.estimate(size, replace(SETTINGS, vllm_sleeps=sleeps, vllm_share=0.25), gpu_bytes=80e9).training
        for sleeps in (True, False)
    )
    assert awake - asleep == pytest.approx(20e9)


def test_verls_own_engine_holds_the_logits_of_all_tokens():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"])
    ours, stock = (
        memory.logits_bytes(size, replace(SETTINGS, holds_all_logits=held), gpu_bytes=80e9) for held in (False, True)
    )
    assert (ours, stock) == (pytest.approx(2 * 8192 * size.vocab, rel=0.01), 6 * 8192 * size.vocab)
