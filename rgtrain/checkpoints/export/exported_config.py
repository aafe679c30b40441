"""Make the config.json of an exported model, which describes the written weights to all versions of transformers."""

import copy
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from rgtrain.checkpoints.hugging_face import nested_objects
from rgtrain.checkpoints.shards.layout import ModelLayout

# Keys in `rope_parameters` by the keys that transformers 4 reads instead, and those of families with other names.
_ROPE_KEYS = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
_ROPE_KEYS_OF_FAMILIES = {"gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}}


def exported_config(saved: dict[str, Any], layout: ModelLayout, *, dtype: str, is_untied: bool) -> dict[str, Any]:
    """Return the config of an exported model.

    Args:
        saved: The content of the checkpoint's config.json.
        layout: The tensors that it describes.
        dtype: The name of the dtype of the written weights, such as "bfloat16".
        is_untied: Whether tensors that the config ties are written separately.

    Returns:
        The content of the exported config.json.
    """
    config = copy.deepcopy(saved)
    # Its value is a folder of the machine that trained the model, or the name of the base model.
    for part in nested_objects(config):
        part.pop("_name_or_path", None)
    config["architectures"] = [layout.architecture]
    # The version is the one that saved the tokenizer. Later versions repair tokenizers of some earlier ones.
    config.setdefault("transformers_version", transformers.__version__)
    for part in (config, *_parts(config)):
        if part is config or part.keys() & {"dtype", "torch_dtype"}:
            # transformers 4 and other loaders read the second name.
            part["dtype"] = part["torch_dtype"] = dtype
        _add_rope_keys(part)
        _add_expert_keys(part)
    _set_tied(config, layout, is_untied=is_untied)
    if layout.is_critic:
        # transformers derives the number of labels from their names.
        config["id2label"] = {str(number): label for number, label in layout.config.id2label.items()}
        config["label2id"] = layout.config.label2id
    return config


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the configs of a multimodal model's parts."""
    return [part for part in nested_objects(config) if part is not config and "model_type" in part]


def _set_tied(config: dict[str, Any], layout: ModelLayout, *, is_untied: bool) -> None:
    """Write whether embeddings are tied, because the defaults of transformers 4 and 5 differ."""
    tied = getattr(layout.config, "tie_word_embeddings", None)
    if tied is None:
        return
    config["tie_word_embeddings"] = bool(tied) and not is_untied
    # Some loaders of multimodal models read it here.
    if isinstance(text := config.get("text_config"), dict):
        text["tie_word_embeddings"] = config["tie_word_embeddings"]


def _add_rope_keys(part: dict[str, Any]) -> None:
    """Add the keys of rotary embeddings that transformers 4 reads. It ignores `rope_parameters`, which has them too."""
    rope, family = part.get("rope_parameters"), str(part.get("model_type"))
    if not isinstance(rope, dict):
        return
    if family.startswith("gemma3") and isinstance(rope.get("full_attention"), dict):
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and "rope_theta" in local:
            part["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"]
    # Other models with several kinds of layers have no common form in transformers 4.
    if any(isinstance(value, dict) for value in rope.values()):
        return
    for key, source in _ROPE_KEYS_OF_FAMILIES.get(family, _ROPE_KEYS).items():
        if source in rope:
            part[key] = rope[source]
    if rope.get("rope_type", "default") != "default":
        part["rope_scaling"] = {key: value for key, value in rope.items() if key not in _ROPE_KEYS}


def _add_expert_keys(part: dict[str, Any]) -> None:
    """Add the number of experts under its other names, because transformers 4 reads another one for some families."""
    family = str(part.get("model_type"))
    names = CONFIG_MAPPING[family].attribute_map if family in CONFIG_MAPPING else {}
    for alias, name in names.items():
        if "experts" in alias and name in part:
            part.setdefault(alias, part[name])
