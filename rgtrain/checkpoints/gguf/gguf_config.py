"""Translate the metadata of a GGUF file to the configuration of a transformers model.

transformers reads a part of the metadata; it ignores the scaling of rotary embeddings, the size of experts, biases and,
for most families, the size of a head. Those are translated here, as llama.cpp interprets them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from rgtrain.checkpoints.gguf.gguf_file import GgufFile, GgufTensor
from rgtrain.checkpoints.untrusted_files import quoted
from rgtrain.errors import ConfigError

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
# These tensors hold numbers of the configuration, not weights.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_MAX_LAYERS = 1000
# The largest relative difference (RMS) between two quantisations of one tensor; two bits give 0.3. The output layer and
# the embedding of a model that does not share them differ by more than 1.
_MAX_TIED_DIFFERENCE = 0.5
_COMPARED_ROWS = 512
# llama.cpp's default, also for families whose default in transformers is another.
_DEFAULT_THETA = 10_000.0
_LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_ORIGINAL_CONTEXT = 8192

_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


@dataclass(frozen=True)
class _Family:
    """An architecture of llama.cpp in transformers' terms.

    Attributes:
        model_type: The model type of transformers.
        sizes: Names of integers in the configuration, by their key in the metadata.
        epsilon: The name of the epsilon of normalisation.
        fixed: Values of the configuration that llama.cpp's code implies.
    """

    model_type: str
    sizes: Mapping[str, str] = field(default_factory=dict)
    epsilon: str = "rms_norm_eps"
    fixed: Mapping[str, Any] = field(default_factory=dict)


_DENSE = {"feed_forward_length": "intermediate_size"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
# Every family has a test that compares logits before and after.
FAMILIES: Mapping[str, _Family] = {
    "gemma2": _Family("gemma2", _DENSE | _WINDOW, fixed={"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma3": _Family("gemma3_text", _DENSE | _WINDOW, fixed={"hidden_activation": "gelu_pytorch_tanh"}),
    "llama": _Family("llama", _DENSE),
    "phi3": _Family("phi3", _DENSE | _WINDOW),
    "qwen2": _Family("qwen2", _DENSE),
    "qwen2moe": _Family(
        "qwen2_moe",
        _DENSE | _EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        fixed={"norm_topk_prob": False},
    ),
    "qwen3": _Family("qwen3", _DENSE),
    "qwen3moe": _Family("qwen3_moe", _DENSE | _EXPERTS, fixed={"norm_topk_prob": True}),
    "stablelm": _Family("stablelm", _DENSE, epsilon="layer_norm_eps"),
    "starcoder2": _Family("starcoder2", _DENSE, epsilon="norm_epsilon"),
}


def family_of(file: GgufFile) -> _Family:
    """Return the family of a model. Raise ConfigError if it is not among FAMILIES."""
    architecture = file.text("general.architecture")
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    kind = file.text("general.type", "model")
    if kind != "model":
        raise ConfigError(f"{str(file.paths[0])!r} holds a {quoted(kind)}, not a model: give the model's own file")
    raise ConfigError(
        f"{str(file.paths[0])!r} has the architecture {quoted(architecture)}, which can't be converted: give a model "
        f"of one of {', '.join(FAMILIES)}"
    )


def model_config(file: GgufFile) -> dict[str, Any]:
    """Return the values of config.json that the file determines, without those of the tokenizer.

    Args:
        file: The file.

    Returns:
        The model type and the arguments of its configuration class.

    Raises:
        ConfigError: The architecture is unknown, or the metadata contradict the tensors.
    """
    family = family_of(file)
    config: dict[str, Any] = {"model_type": family.model_type, **family.fixed}
    for key, name in {**_SIZES, **family.sizes}.items():
        if (value := _size(file, key)) is not None:
            config[name] = value
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        if name not in config:
            _refuse_contradiction(file, f"lacks the metadata of {name}")
    # transformers would leave the rows of a Llama's heads in llama.cpp's order without this.
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    embedding = file.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        _refuse_contradiction(file, f"has no tensor {EMBEDDING}")
    config["vocab_size"] = embedding.shape[0]
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if not 0 < config["num_hidden_layers"] == len(blocks) <= _MAX_LAYERS:
        _refuse_contradiction(file, f"claims {config['num_hidden_layers']} layers but holds {len(blocks)}")
    head_dim = _head_dim(file, config)
    if family.model_type not in ("phi3", "qwen2", "qwen2_moe", "stablelm", "starcoder2"):
        config["head_dim"] = head_dim
    elif head_dim * config["num_attention_heads"] != config["hidden_size"]:
        _refuse_contradiction(file, f"has heads of {head_dim} values, which this family can't have")
    epsilon = _number(file, "attention.layer_norm_rms_epsilon") or _number(file, "attention.layer_norm_epsilon")
    if epsilon is not None:
        config[family.epsilon] = epsilon
    config |= _biases(file, family) | _attention(file, family, config, head_dim)
    config["rope_parameters"] = _rope(file, config, head_dim)
    if "expert_count" in family.sizes:
        # Layers without a router are dense.
        config["mlp_only_layers"] = [
            layer for layer in range(len(blocks)) if f"blk.{layer}.ffn_gate_inp.weight" not in file.tensors
        ]
    if family.model_type == "gemma3_text":
        rope = config["rope_parameters"]
        config["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": _DEFAULT_THETA},
        }
    tied = tied_tensor(file)
    config["tie_word_embeddings"] = tied is not None
    return config


def tied_tensor(file: GgufFile) -> str | None:
    """Return the tensor that serves as embedding and as output layer; None if the model has one for each.

    Without an output layer in the file, the embedding serves as both. With one, both are compared, because converters
    and quantisers often write a shared tensor twice, at different precisions. Then the more precise one is meant.

    Args:
        file: The file.

    Returns:
        The tensor's name.
    """
    embedding, output = file.tensors[EMBEDDING], file.tensors.get(OUTPUT)
    if output is None:
        return EMBEDDING
    if output.shape != embedding.shape:
        return None
    first, second = _rows(embedding), _rows(output)
    if not (embedding.is_quantised or output.is_quantised):
        return EMBEDDING if np.array_equal(first, second) and np.array_equal(embedding.read(), output.read()) else None
    difference = np.linalg.norm(first - second) / max(float(np.linalg.norm(first)), 1e-30)
    if not difference < _MAX_TIED_DIFFERENCE:
        return None
    return OUTPUT if output.bits_per_value > embedding.bits_per_value else EMBEDDING


def _rows(tensor: GgufTensor) -> np.ndarray:
    # Some rows suffice to compare, spread over the vocabulary, because the last ones are often padding.
    num_rows = min(tensor.shape[0], _COMPARED_ROWS)
    picked = [tensor.shape[0] * number // num_rows for number in range(num_rows)]
    row_bytes = tensor.num_bytes // tensor.shape[0]
    rows = [
        GgufTensor(
            tensor.name, (1, tensor.shape[1]), tensor.kind, tensor.path, tensor.start + row * row_bytes, row_bytes
        ).read()
        for row in picked
    ]
    return np.concatenate(rows)


def _attention(file: GgufFile, family: _Family, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    heads, hidden, layers = (config[name] for name in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    values: dict[str, Any] = {}
    if family.model_type in ("gemma2", "gemma3_text"):
        # The largest model of each generation scales by the width of a head as it would be without its own head_dim.
        is_largest = layers == {"gemma2": 46, "gemma3_text": 62}[family.model_type]
        values["query_pre_attn_scalar"] = hidden // heads if is_largest else head_dim
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            default = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}[key]
            values[key] = _number(file, key) or (default if family.model_type == "gemma2" else None)
    if family.model_type == "stablelm":
        values["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in file.tensors
    if (original := _size(file, "rope.scaling.original_context_length")) and family.model_type == "phi3":
        # The ratio of the contexts scales attention, in both libraries.
        values["original_max_position_embeddings"] = original
    if family.model_type == "starcoder2":
        # llama.cpp ignores the window, and the metadata have none.
        values["sliding_window"] = None
    return values


def _biases(file: GgufFile, family: _Family) -> dict[str, Any]:
    has_qkv = "blk.0.attn_q.bias" in file.tensors
    has_mlp = any(f"blk.0.ffn_{part}.bias" in file.tensors for part in ("up", "down"))
    match family.model_type:
        case "llama":
            return {"attention_bias": has_qkv, "mlp_bias": has_mlp}
        case "qwen3" | "qwen3_moe" | "gemma2" | "gemma3_text":
            return {"attention_bias": has_qkv}
        case "qwen2_moe":
            return {"qkv_bias": has_qkv}
        case "stablelm":
            return {"use_qkv_bias": has_qkv}
        case "starcoder2":
            return {"use_bias": has_qkv}
    return {}


def _head_dim(file: GgufFile, config: Mapping[str, Any]) -> int:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    query = file.tensors.get("blk.0.attn_q.weight")
    num_values = hidden if query is None else query.shape[0]
    if not heads or num_values % heads:
        _refuse_contradiction(file, f"has {heads} attention heads for {num_values} values")
    key_length = _size(file, "attention.key_length") or num_values // heads
    if _size(file, "attention.value_length") not in (None, key_length):
        _refuse_contradiction(file, "has heads with keys and values of different lengths")
    return key_length


def _rope(file: GgufFile, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    # Families without this key use transformers' default, which equals llama.cpp's, except for Gemma 3.
    theta = _number(file, "rope.freq_base") or (
        1_000_000.0 if config["model_type"] == "gemma3_text" else _DEFAULT_THETA
    )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    rotated = _size(file, "rope.dimension_count") or head_dim
    if not 0 < rotated <= head_dim:
        _refuse_contradiction(file, f"rotates {rotated} of {head_dim} values of a head")
    if rotated != head_dim or config["model_type"] in ("stablelm", "phi3"):
        if config["model_type"] not in ("stablelm", "phi3"):
            _refuse_contradiction(file, f"rotates {rotated} of {head_dim} values of a head, which this family can't")
        rope["partial_rotary_factor"] = rotated / head_dim
    kind = file.text(_key(file, "rope.scaling.type"), "none")
    factor = _number(file, "rope.scaling.factor") or _number(file, "rope.scale_linear")
    original = _size(file, "rope.scaling.original_context_length")
    if ROPE_TENSORS[1] in file.tensors:
        return rope | _long_rope(file, config, original=original)
    if ROPE_TENSORS[0] in file.tensors:
        return rope | _llama3_rope(file, config, theta=theta, rotated=rotated)
    if kind in ("none", "") and not (factor and factor != 1 and not file.text(_key(file, "rope.scaling.type"))):
        return rope
    if kind == "linear" or kind == "none":
        return rope | {"rope_type": "linear", "factor": factor or 1.0}
    if kind == "yarn":
        yarn = {"rope_type": "yarn", "factor": factor or 1.0}
        if original:
            yarn["original_max_position_embeddings"] = original
        for key, name in {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}.items():
            if (value := _number(file, f"rope.scaling.{key}")) is not None:
                yarn[name] = value
        return rope | yarn
    _refuse_contradiction(file, f"scales rotary embeddings by {quoted(kind)}, which is unknown here")


def _long_rope(file: GgufFile, config: Mapping[str, Any], *, original: int | None) -> dict[str, Any]:
    if ROPE_TENSORS[2] not in file.tensors or config["model_type"] != "phi3":
        _refuse_contradiction(file, "has factors of rotary embeddings that this family does not know")
    long, short = (file.tensors[name].read().reshape(-1).tolist() for name in ROPE_TENSORS[1:])
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original or config["max_position_embeddings"],
    }


def _llama3_rope(file: GgufFile, config: Mapping[str, Any], *, theta: float, rotated: int) -> dict[str, Any]:
    """Recover the parameters of Llama 3.1's scaling from the factors that a converter computed with them."""
    factors = file.tensors[ROPE_TENSORS[0]].read().reshape(-1)
    frequencies = 1.0 / theta ** (np.arange(0, rotated, 2) / rotated)
    factor = float(factors.max(initial=1.0))
    if factors.shape != frequencies.shape or not math.isfinite(factor):
        _refuse_contradiction(file, f"has {factors.size} factors for {frequencies.size} rotary frequencies")
    wavelengths = 2 * math.pi / frequencies
    low, high = _LLAMA3_FACTORS["low_freq_factor"], _LLAMA3_FACTORS["high_freq_factor"]
    smooth = np.clip((_LLAMA3_ORIGINAL_CONTEXT / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if config["model_type"] != "llama" or not np.allclose(factors, expected, rtol=1e-3):
        _refuse_contradiction(file, "scales rotary frequencies by factors that are not those of Llama 3.1")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL_CONTEXT,
        **_LLAMA3_FACTORS,
    }


def _key(file: GgufFile, key: str) -> str:
    return f"{file.text('general.architecture')}.{key}"


def _size(file: GgufFile, key: str) -> int | None:
    value = file.metadata.get(_key(file, key))
    if isinstance(value, list):
        # Converters write one number per layer, even if all are equal.
        if len(set(map(str, value))) != 1:
            _refuse_contradiction(file, f"has layers that differ in {key}, which no supported family has")
        value = value[0]
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        _refuse_contradiction(file, f"has {_key(file, key)} = {value!r:.60}")
    return value


def _number(file: GgufFile, key: str) -> float | None:
    value = file.number(_key(file, key))
    # The shortest decimal of the stored fp32: 1e-06, not 9.999999974752427e-07.
    return None if value is None else float(str(np.float32(value)))


def _refuse_contradiction(file: GgufFile, what: str) -> NoReturn:
    raise ConfigError(f"{str(file.paths[0])!r} {what}: download or convert it again, or give another file")
