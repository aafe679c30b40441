"""Tiny random models with experts, of families that vLLM runs on a CPU."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# The sizes are multiples of 32, which vLLM's CPU kernels need.
_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# Settings of the experts by model type.
MOE_SETTINGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
    "glm4_moe": {**_GROUPED, "num_experts_per_tok": 2, "n_shared_experts": 1, "head_dim": 32},
}


def tiny_model(family: str, **settings: Any) -> PreTrainedModel:
    """Return a model of the family with two layers and four experts per layer, in fp32.

    Its weights are large, so that other weights give clearly different log-probabilities.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **_SIZES, **MOE_SETTINGS.get(family, {}), **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
