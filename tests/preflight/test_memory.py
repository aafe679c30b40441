"""The estimate of memory agrees with what the real modules keep."""

from dataclasses import replace

import pytest
import torch
from support.live_bytes import LiveBytes, kernel_attention
from support.memory_settings import SETTINGS

from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight import memory
from rgtrain.preflight.sizes import ModelSize

TOKENS = SETTINGS.max_micro_batch_tokens


def model_of(shape: dict, *, lora_rank: int, checkpointing: bool) -> tuple:
    """The decoder, and all its tensors that are there before a step, without content."""
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
    """Bytes kept after the decoder's forward pass, and at most until the end of the backward pass."""
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
def test_activations_are_those_of_the_real_modules(name, checkpointing, lora_rank):
    # Without logits: their layer computes them on a GPU by kernels that nothing can be counted of here.
    shape = SHAPES[name] | {"num_hidden_layers": 8, "vocab_size": 64}
    size = ModelSize.of(shape)
    settings = replace(SETTINGS, lora_rank=lora_rank, checkpointing=checkpointing)
    kept, peak = measured(shape, lora_rank=lora_rank, checkpointing=checkpointing)
    # Behind the last layer: a norm, in fp32 and bf16.
    expected = memory.activations(size, settings) + (6 if lora_rank else 8) * size.hidden * TOKENS
    if checkpointing:
        expected -= memory.activation_bytes(size, settings) * TOKENS
    assert kept == pytest.approx(expected, rel=0.03)
    assert peak == pytest.approx(memory.working_peak(size, settings, gpu_bytes=80e9), rel=0.05)


def test_gradients_that_are_summed_once_are_whole_until_then_and_shared_after():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"])
    states = memory.model_states(size, replace(SETTINGS, num_gpus=4, sync_once=True))
    assert states["weights"] == size.total
    assert states["gradients"] == 4 * size.total + size.total


def test_states_are_shared_by_the_gpus_and_a_critic_doubles_them():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"])
    alone = sum(memory.model_states(size, SETTINGS).values())
    assert alone == pytest.approx(16 * size.total)
    assert sum(memory.model_states(size, replace(SETTINGS, num_gpus=4)).values()) == pytest.approx(alone / 4)
    assert sum(memory.model_states(size, replace(SETTINGS, has_critic=True)).values()) == pytest.approx(2 * alone)
    assert sum(memory.model_states(size, replace(SETTINGS, cpu_offload=True)).values()) == 0
