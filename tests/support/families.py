"""Make tiny random models of many families in memory, and compare a layout with the plain model.

They have two layers and a vocabulary of 128 tokens. Windows and chunks are shorter than the sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from verl.models.transformers.monkey_patch import apply_monkey_patch

from rgtrain.training.update.layouts import Layout, PolicyModel, remove_noise
from rgtrain.training.update.log_prob_head import Targets

VOCABULARY_SIZE = 128
TEMPERATURE = 0.7
# Every configuration takes those of these sizes that it knows, and keeps the rest as unused attributes.
_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Large enough that attention matters.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Mixtures of experts.
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    # Layers with a state.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "mamba_n_groups": 1,
    # Mamba 2 pads sequences to whole chunks.
    "chunk_size": 8,
    "mamba_chunk_size": 8,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
    "image_size": 28,
    "patch_size": 14,
    "num_position_embeddings": 16,
}
_STATE_AND_ATTENTION = {"layer_types": ["linear_attention", "full_attention"]}
_WINDOW_AND_FULL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
# Further values that a family needs, or that make it different from others.
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"sliding_window": 5, "logit_scale": 0.25},
    "cwm": {"sliding_window": 5},
    "deepseek_v2": {"head_dim": 8},
    "deepseek_v3": {"head_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "exaone4": {"sliding_window": 5},
    "falcon_h1": {"mamba_d_ssm": 128, "lm_head_multiplier": 0.5},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY_SIZE, "hidden_size_per_layer_input": 8},
    "gemma2": {
        "sliding_window": 5,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {**_WINDOW_AND_FULL, "query_pre_attn_scalar": 16},
    "glm4_moe_lite": {"head_dim": 8},
    "gpt_oss": _WINDOW_AND_FULL,
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"attention_chunk_size": 5},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "state_size": 16, "n_groups": 1},
    "mistral": {"sliding_window": 5},
    "mixtral": {"sliding_window": 5},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "n_groups": 1},
    "olmo3": _WINDOW_AND_FULL,
    "olmo_hybrid": _STATE_AND_ATTENTION,
    "phi3": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3_5_moe_text": _STATE_AND_ATTENTION,
    "qwen3_5_text": _STATE_AND_ATTENTION,
    "qwen3_next": _STATE_AND_ATTENTION,
    "starcoder2": {"sliding_window": 5},
    "youtu": {"head_dim": 8},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "layer_types": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "num_mem_blocks": 1,
        "mamba_headdim": 32,
        "n_mamba_heads": 4,
        "adapter_rank": 8,
    },
}
# The configurations of these forbid the attribute.
_WITHOUT = {"falcon": ("head_dim",)}


@dataclass(frozen=True)
class Outputs:
    """Log-probabilities and entropies of all completion tokens, and the gradients of a loss over them, by parameter."""

    log_probs: Tensor
    entropy: Tensor
    gradients: dict[str, Tensor]


def make_model(
    model_type: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    auto_class: Any = AutoModelForCausalLM,
    **settings: Any,
) -> Any:
    """Make a random model as it is trained, with gradient checkpointing, and as verl changes it."""
    config_class = type(AutoConfig.for_model(model_type))
    if "vision_config" in config_class.sub_configs:
        # verl loads such a model with its image encoder.
        if auto_class is AutoModelForCausalLM:
            auto_class = AutoModelForImageTextToText
        text = config_class.sub_configs["text_config"].model_type
        sizes = _sizes(text) | {"model_type": text}
        config = config_class(text_config=sizes, vision_config=_VISION, pad_token_id=0, **settings)
    else:
        config = config_class(**_sizes(model_type), **settings)
    remove_noise(config)
    torch.manual_seed(0)
    model = auto_class.from_config(config).to(device=device, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    apply_monkey_patch(model, use_remove_padding=False)
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _sizes(model_type: str) -> dict[str, Any]:
    sizes = {name: value for name, value in _SIZES.items() if name not in _WITHOUT.get(model_type, ())}
    return sizes | _OWN.get(model_type, {})


def make_sequences(device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """Return prompts and responses of two groups, one after the other."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> Tensor:
        return torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator)

    first, second = tokens(9), tokens(14)
    return [first, first, second, second, second], [tokens(length) for length in (4, 8, 1, 60, 9)]


def _weights(num_tokens: int, device: Any) -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, num_tokens, device=device), torch.linspace(0.3, -0.2, num_tokens, device=device)


def _outputs(model: Any, log_probs: Tensor, entropy: Tensor) -> Outputs:
    of_log_probs, of_entropy = _weights(len(log_probs), log_probs.device)
    (log_probs * of_log_probs + entropy * of_entropy).sum().backward()
    gradients = {name: weight.grad.float() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return Outputs(log_probs.detach(), entropy.detach(), gradients)


def plain_outputs(model: Any, prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> Outputs:
    """Return the outputs of an unchanged model, one sequence after the other."""
    log_probs, entropies = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        input_ids = torch.cat([prompt, response])[None].to(model.device)
        logits = model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE
        distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
        log_probs.append(distribution.log_prob(response.to(model.device)))
        entropies.append(distribution.entropy())
    return _outputs(model, torch.cat(log_probs), torch.cat(entropies))


def outputs_of_layout(
    policy: PolicyModel, model: Any, layout: Layout, prompts: Sequence[Tensor], responses: Sequence[Tensor]
) -> Outputs:
    """Return the outputs of a model in a layout, by the calls that the engine makes."""
    policy.use(layout)
    arranged = layout.arrange(prompts, responses).to(model.device)
    policy.head.targets = Targets(arranged.labels, arranged.sources, temperature=TEMPERATURE, with_entropy=True)
    log_probs, entropy = model(**arranged.model_inputs, use_cache=False).logits.unbind(-1)
    return _outputs(model, log_probs, entropy)


def values_of_padded_and_separate(
    model: Any, prompts: Sequence[Tensor], responses: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the values of all tokens, from a padded batch as verl gives it to a critic, and one by one."""
    sequences = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    input_ids = pad_sequence(sequences, batch_first=True)
    mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True)
    positions = (mask.cumsum(-1) - 1) * mask
    with torch.no_grad():
        padded = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        separate = [model(input_ids=sequence[None], use_cache=False).logits[0] for sequence in sequences]
    return padded[mask.bool()], torch.cat(separate)


def largest_difference(one: Outputs, other: Outputs) -> float:
    """Return the largest difference of log-probabilities and entropies, and of gradients relative to their norm."""
    values = [(one.log_probs - other.log_probs).abs().max(), (one.entropy - other.entropy).abs().max()]
    assert one.gradients.keys() == other.gradients.keys()
    total = torch.stack([gradient.norm() for gradient in one.gradients.values()]).norm()
    # Gradients that are zero but for rounding errors have no relative difference.
    relative = [
        (gradient - other.gradients[name]).norm() / torch.maximum(gradient.norm(), 1e-3 * total)
        for name, gradient in one.gradients.items()
    ]
    return torch.stack([*values, *relative]).max().item()
