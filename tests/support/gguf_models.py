"""Write tiny models as GGUF files by the rules of llama.cpp's converter, independently of the code that reads them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Large enough that attention matters.
    "initializer_range": 0.3,
}
_WINDOW = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_THETA = {"rope_type": "default", "rope_theta": 50_000.0}
# Settings of a tiny model and additional metadata, by llama.cpp's name.
GGUF_FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        {"rope_parameters": _THETA, "head_dim": 32, "attention_bias": True},
        {"rope.dimension_count": 32},
    ),
    "qwen2": ("qwen2", {"rope_parameters": _THETA}, {}),
    "qwen3": ("qwen3", {"rope_parameters": _THETA, "head_dim": 32}, {"attention.key_length": 32}),
    "qwen2moe": (
        "qwen2_moe",
        {"rope_parameters": _THETA, **_EXPERTS, "shared_expert_intermediate_size": 48},
        {"expert_shared_feed_forward_length": 48},
    ),
    "qwen3moe": (
        "qwen3_moe",
        {"rope_parameters": _THETA, **_EXPERTS, "head_dim": 32, "norm_topk_prob": True},
        {"attention.key_length": 32},
    ),
    "gemma2": (
        "gemma2",
        _WINDOW | {"rope_parameters": _THETA},
        {"attention.key_length": 32, "attention.sliding_window": 8, "attn_logit_softcapping": 50.0},
    ),
    "gemma3": (
        "gemma3_text",
        _WINDOW
        | {"num_hidden_layers": 7}
        | {"rope_parameters": {"full_attention": _THETA, "sliding_attention": _THETA | {"rope_theta": 10_000.0}}},
        {"attention.key_length": 32, "attention.sliding_window": 8},
    ),
    "phi3": ("phi3", {"rope_parameters": _THETA}, {"rope.dimension_count": 16}),
    "stablelm": (
        "stablelm",
        {"rope_parameters": _THETA | {"partial_rotary_factor": 0.25}, "use_qkv_bias": True},
        {"rope.dimension_count": 4},
    ),
    "starcoder2": ("starcoder2", {"rope_parameters": _THETA, "sliding_window": None}, {}),
}


def tiny_gguf_model(architecture: str, **settings: Any) -> PreTrainedModel:
    """Return a random model in fp32 with two layers, whose norms and biases are random too."""
    model_type, own, _ = GGUF_FAMILIES[architecture]
    torch.manual_seed(0)
    # Configurations write into the dictionaries that they get.
    config = AutoConfig.for_model(model_type, **copy.deepcopy(_SIZES | own | {"pad_token_id": 0} | settings))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def byte_tokens() -> list[str]:
    """Return the 256 byte tokens of byte-level BPE."""
    return sorted(ByteLevel.alphabet())


def byte_level_metadata(
    pre: str = "qwen2", *, merges: tuple[str, ...] = ("t h", "th e", "1 2", "12 3")
) -> dict[str, Any]:
    """Return the metadata of a byte-level tokenizer with four control tokens and a few merges."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    tokens = [*control, *byte_tokens(), *(merge.replace(" ", "") for merge in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(control) + [1] * (len(tokens) - len(control)),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a sentencepiece tokenizer with scores, bytes and a user-defined token."""
    pieces = ["▁t", "he", "▁the", "▁1", "12", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789.?+"]
    tokens = ["<unk>", "<s>", "</s>", "<end_of_turn>", "<tool>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, 3, 3, 3, 4, *[6] * 256, *[1] * len(pieces)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 261 + [-float(number) for number in range(len(pieces))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | changes


def write_gguf(
    path: Path,
    architecture: str,
    model: PreTrainedModel,
    *,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    kinds: Mapping[str, str] | None = None,
    with_output: bool | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model as llama.cpp's converter does.

    Args:
        path: The file.
        architecture: llama.cpp's name of the family.
        model: The model.
        metadata: Metadata of the architecture that replace the usual ones; None removes a key.
        tokenizer: The tokenizer's metadata; by default, `byte_level_metadata()`.
        kind: The type of matrices.
        kinds: Types of single tensors, by llama.cpp's name.
        with_output: Whether to write the output layer; by default, if it is not tied.
        extra_tensors: Tensors that are no weights.

    Returns:
        `path`.
    """
    config = model.config
    writer = GGUFWriter(path, architecture)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    values = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": rope["rope_theta"],
        **_epsilon(config),
        **(
            {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
            if "moe" in architecture
            else {}
        ),
        **GGUF_FAMILIES[architecture][2],
        **(metadata or {}),
    }
    for key, value in values.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    for key, value in (byte_level_metadata() if tokenizer is None else tokenizer).items():
        _add(writer, key, value)
    has_output = not config.tie_word_embeddings if with_output is None else with_output
    for name, tensor in _tensors(architecture, model, has_output=has_output).items():
        array = np.ascontiguousarray(tensor.detach().numpy())
        own = GGMLQuantizationType[(kinds or {}).get(name, kind.name)]
        if array.ndim > 1 and own != GGMLQuantizationType.F32:
            writer.add_tensor(name, quantize(array, own), raw_dtype=own)
        else:
            writer.add_tensor(name, array)
    for name, array in (extra_tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _epsilon(config: Any) -> dict[str, float]:
    for name in ("rms_norm_eps", "layer_norm_eps", "norm_epsilon"):
        if hasattr(config, name):
            return {f"attention.layer_norm_{'rms_' if name == 'rms_norm_eps' else ''}epsilon": getattr(config, name)}
    return {}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _tensors(architecture: str, model: PreTrainedModel, *, has_output: bool) -> dict[str, Tensor]:
    [number] = [number for number, name in MODEL_ARCH_NAMES.items() if name == architecture]
    names = get_tensor_name_map(number, model.config.num_hidden_layers)
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and not has_output:
            continue
        if name.endswith("experts.gate_up_proj"):
            layer = name.split(".")[2]
            found[f"blk.{layer}.ffn_gate_exps.weight"], found[f"blk.{layer}.ffn_up_exps.weight"] = tensor.chunk(
                2, dim=1
            )
            continue
        if name.endswith("experts.down_proj"):
            found[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = tensor
            continue
        stem, _, suffix = name.rpartition(".")
        if architecture == "llama" and ".q_proj" in name:
            tensor = _interleaved(tensor, heads)
        elif architecture == "llama" and ".k_proj" in name:
            tensor = _interleaved(tensor, kv_heads)
        elif architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            tensor = tensor + 1
        elif name.endswith("shared_expert_gate.weight"):
            tensor = tensor.squeeze(0)
        found[f"{names.get_name(stem)}.{suffix}"] = tensor
    return found


def _interleaved(tensor: Tensor, num_heads: int) -> Tensor:
    """Order the rows of each head in pairs, as llama.cpp's rotary embedding of Llama expects them."""
    return (
        tensor.reshape(num_heads, 2, tensor.shape[0] // num_heads // 2, *tensor.shape[1:])
        .transpose(1, 2)
        .reshape(tensor.shape)
    )
