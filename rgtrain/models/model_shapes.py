"""The shapes of known models, as arguments of `transformers.AutoConfig.for_model`. Importing this loads no library.

They come from the models' published config.json. A test compares the numbers of parameters with the published ones.
"""

from types import MappingProxyType
from typing import Any

Shape = MappingProxyType[str, Any]

_LLAMA_3_ROPE = MappingProxyType(
    {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
)


def _shape(
    model_type: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, /, **others: Any
) -> Shape:
    return MappingProxyType(
        {
            "model_type": model_type,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            **others,
        }
    )


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _qwen2(*sizes: int, vocab_size: int = 151_936, **others: Any) -> Shape:
    known = {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_parameters": _rope(1e6)}
    return _shape("qwen2", *sizes, vocab_size=vocab_size, **known, **others)


def _qwen3(*sizes: int, **others: Any) -> Shape:
    known = {"max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_parameters": _rope(1e6)}
    return _shape("qwen3", *sizes, vocab_size=151_936, head_dim=128, **known, **others)


def _llama3(*sizes: int, head_dim: int, rope_factor: float = 32.0, **others: Any) -> Shape:
    rope = _LLAMA_3_ROPE | {"factor": rope_factor}
    known = {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_parameters": rope}
    return _shape("llama", *sizes, vocab_size=128_256, head_dim=head_dim, **known, **others)


def _smollm2(*sizes: int, theta: float) -> Shape:
    known = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_parameters": _rope(theta)}
    return _shape("llama", *sizes, vocab_size=49_152, head_dim=64, **known)


# Sizes: hidden, intermediate, layers, attention heads, key-value heads.
SHAPES: MappingProxyType[str, Shape] = MappingProxyType(
    {
        "llama3.1-8b": _llama3(4096, 14_336, 32, 32, 8, head_dim=128, rope_factor=8.0, tie_word_embeddings=False),
        "llama3.2-1b": _llama3(2048, 8192, 16, 32, 8, head_dim=64),
        "llama3.2-3b": _llama3(3072, 8192, 28, 24, 8, head_dim=128),
        "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2),
        "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2),
        "qwen2.5-3b": _qwen2(2048, 11_008, 36, 16, 2),
        "qwen2.5-7b": _qwen2(3584, 18_944, 28, 28, 4, vocab_size=152_064, tie_word_embeddings=False),
        "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8),
        "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8),
        "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8),
        "qwen3-8b": _qwen3(4096, 12_288, 36, 32, 8, tie_word_embeddings=False),
        "smollm2-135m": _smollm2(576, 1536, 30, 9, 3, theta=1e5),
        "smollm2-360m": _smollm2(960, 2560, 32, 15, 5, theta=1e5),
        "smollm2-1.7b": _smollm2(2048, 8192, 24, 32, 32, theta=1.3e5),
    }
)

# The shapes of models by their names on the hub.
HUB_NAMES: MappingProxyType[str, str] = MappingProxyType(
    {
        "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
        "meta-llama/Llama-3.2-1B-Instruct": "llama3.2-1b",
        "meta-llama/Llama-3.2-3B-Instruct": "llama3.2-3b",
        "Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5-0.5b",
        "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b",
        "Qwen/Qwen2.5-3B-Instruct": "qwen2.5-3b",
        "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
        "Qwen/Qwen3-0.6B": "qwen3-0.6b",
        "Qwen/Qwen3-1.7B": "qwen3-1.7b",
        "Qwen/Qwen3-4B": "qwen3-4b",
        "Qwen/Qwen3-8B": "qwen3-8b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-360M-Instruct": "smollm2-360m",
    }
)
