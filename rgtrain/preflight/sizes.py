"""Compute a decoder's number of parameters from its shape, an entry of SHAPES or a model's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.models.context_length import context_length
from rgtrain.models.family_layouts import PADDED_ROWS

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class ModelSize:
    """The shape of a Llama-like decoder."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    has_qkv_bias: bool
    has_qk_norm: bool
    max_positions: int | None = None
    # For a mixture of experts, `intermediate` is the width of all experts that a token uses, and this that of all.
    stored_intermediate: int | None = None
    shares_prompts: bool = True

    @classmethod
    def of(cls, shape: Mapping[str, Any]) -> "ModelSize":
        """Read the sizes from `shape`; raise ConfigError if one is missing, as the model is no plain decoder."""
        family = shape.get("model_type")
        # A model with an image encoder has the sizes of its decoder in a part of the configuration.
        shape = {**shape, **(shape.get("text_config") or {})}
        used, stored = _mlp_widths(shape)
        if used is not None:
            shape["intermediate_size"] = used
        for name in _NEEDED:
            if name not in shape:
                raise ConfigError(
                    f"the size of a model of type {shape.get('model_type')!r} is unknown, because its configuration "
                    f"has no {name}; use a Llama-like decoder"
                )
        heads = shape["num_attention_heads"]
        return cls(
            hidden=shape["hidden_size"],
            intermediate=shape["intermediate_size"],
            num_layers=shape["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=shape.get("num_key_value_heads") or heads,
            head_dim=shape.get("head_dim") or shape["hidden_size"] // heads,
            vocab=shape["vocab_size"],
            tied=bool(shape.get("tie_word_embeddings", False)),
            has_qkv_bias=shape.get("model_type") == "qwen2",
            has_qk_norm=shape.get("model_type") == "qwen3",
            max_positions=context_length(shape),
            stored_intermediate=stored,
            shares_prompts=family not in PADDED_ROWS,
        )

    @classmethod
    def if_known(cls, config: Mapping[str, Any]) -> "ModelSize | None":
        """Return the sizes of a model with this content of config.json, or None if it is no plain decoder."""
        try:
            return cls.of(config)
        except ConfigError:
            return None

    @property
    def query_width(self) -> int:
        """Values per token of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Values per token of the keys of all heads, and equally of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer(self) -> int:
        """The number of parameters of one layer."""
        mlp = 3 * (self.stored_intermediate or self.intermediate)
        weights = self.hidden * (2 * self.query_width + 2 * self.key_width + mlp)
        biases = (self.query_width + 2 * self.key_width) * self.has_qkv_bias
        return weights + biases + 2 * self.hidden + 2 * self.head_dim * self.has_qk_norm

    @property
    def outside_layers(self) -> int:
        """The number of parameters of the embedding, the output layer (unless tied to it) and the last norm."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return self.num_layers * self.layer + self.outside_layers

    def lora(self, rank: int) -> int:
        """Return the number of parameters of LoRA adapters on all linear layers except the output layer."""
        attention = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.key_width)
        return self.num_layers * rank * (attention + 3 * (self.hidden + self.intermediate))

    def kv_cache(self, *, tensor_parallel: int) -> int:
        """Return the bytes per token of the bf16 KV cache on one of `tensor_parallel` GPUs; a head is never split."""
        heads = max(1, self.num_kv_heads // tensor_parallel)
        return 2 * 2 * self.num_layers * heads * self.head_dim


def _mlp_widths(shape: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the widths of the experts that a token uses and of all experts of a layer; None without experts."""
    counts = (shape.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    num_experts, per_token = next((count for count in counts if count), None), shape.get("num_experts_per_tok")
    width = shape.get("moe_intermediate_size") or shape.get("intermediate_size")
    if not (num_experts and per_token and width):
        return None, None
    shared = shape.get("shared_expert_intermediate_size") or width * (shape.get("n_shared_experts") or 0)
    return per_token * width + shared, num_experts * width + shared
