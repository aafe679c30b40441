"""The longest sequence that a model takes, from its config.json, by the rules of vLLM."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The keys that vLLM reads, of which the smallest counts.
_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Scalings whose result is already in max_position_embeddings.
_SCALED_ALREADY = ("default", "longrope", "su", "llama3")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a model takes.

    YaRN extends the length before the extension, `original_max_position_embeddings`, by its factor. Many published
    configurations leave `max_position_embeddings` at the shorter length. Other scalings multiply
    `max_position_embeddings`, except those that already include their factor.

    Args:
        config: The content of config.json.

    Returns:
        The length in tokens; None if the configuration does not limit it.
    """
    config = {**config, **(config.get("text_config") or {})}
    lengths = [value for key in _KEYS if isinstance(value := config.get(key), int) and value > 0]
    # Command-R's own key counts alone.
    own = config.get("model_max_length")
    length = own if isinstance(own, int) and own > 0 else min(lengths, default=None)
    if length is None or "gemma3" in str(config.get("model_type")):
        return length
    for scaling in _scalings(config):
        kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
        if kind in _SCALED_ALREADY or not isinstance(factor, int | float) or isinstance(factor, bool) or factor <= 0:
            continue
        if "yarn" in str(kind):
            original = scaling.get("original_max_position_embeddings")
            return int(original * factor) if isinstance(original, int) and original > 0 else length
        length = int(length * factor)
        break
    return length


def vllm_overrides(folder: Path, *, max_model_len: int) -> dict[str, Any]:
    """Return the values of config.json that vLLM must see to accept a length.

    Newer versions of vLLM expect that `max_position_embeddings` includes YaRN's factor. They refuse a longer sequence,
    although their tables of positions are long enough.

    Args:
        folder: The folder of the model.
        max_model_len: The length that vLLM is asked for, in tokens.

    Returns:
        The value of vLLM's argument `hf_overrides`; empty if none is needed.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        return {}
    length, stated = context_length(config), config.get("max_position_embeddings")
    if length is None or not isinstance(stated, int) or not stated < max_model_len <= length:
        return {}
    return {"max_position_embeddings": length} if any(_is_yarn(scaling) for scaling in _scalings(config)) else {}


def _is_yarn(scaling: Mapping[str, Any]) -> bool:
    return "yarn" in str(scaling.get("rope_type") or scaling.get("type"))


def _scalings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the model's scalings of positions, one for each type of layer if they differ."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, Mapping):
        return []
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return nested or [found]
