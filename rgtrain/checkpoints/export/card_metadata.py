"""The metadata of a model card (YAML front matter), by which the hub lists a model beside its base model.

The format is specified at https://huggingface.co/docs/hub/model-cards. Values come from files by unknown authors, so
only values of the expected form are taken.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from rgtrain.checkpoints.untrusted_files import printable, read_bounded
from rgtrain.errors import ConfigError
from rgtrain.paths import project_path

CARD = "README.md"
_MAX_CARD_BYTES = 2**20
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# The folder of a model in the hub's cache, which stands two levels above the files.
_CACHED = re.compile(r"models--([\w.-]{1,96}?)--([\w.-]{1,96})", re.ASCII)
_DATASET = re.compile(r"[A-Za-z0-9][\w-]{0,90}", re.ASCII)
_TAG = re.compile(r"[a-z][a-z0-9_-]{0,30}", re.ASCII)
_LICENSE_NAME = re.compile(r"[A-Za-z0-9][\w .-]{0,60}", re.ASCII)
_LINK = re.compile(r"https://[\w./%-]{1,200}", re.ASCII)
# The identifiers that the hub accepts: https://huggingface.co/docs/hub/repositories-licenses
_LICENSE = re.compile(
    r"apache-2\.0|mit|isc|zlib|wtfpl|unlicense|postgresql|ncsa|afl-3\.0|artistic-2\.0|ecl-2\.0|ms-pl|mpl-2\.0|osl-3\.0"
    r"|bsl-1\.0|bsd|bsd-2-clause|bsd-3-clause|bsd-3-clause-clear|epl-[12]\.0|eupl-1\.[12]|lppl-1\.3c|ofl-1\.1|c-uda"
    r"|a?gpl-3\.0|gpl|gpl-2\.0|lgpl|lgpl-2\.1|lgpl-3\.0|lgpl-lr|gfdl|etalab-2\.0|odc-by|odbl|pddl|cdla-sharing-1\.0"
    r"|cdla-permissive-[12]\.0|cc|cc0-1\.0|cc-by-(2\.0|2\.5|3\.0|4\.0)|cc-by-sa-[34]\.0|cc-by-nc-[234]\.0|cc-by-nd-4\.0"
    r"|cc-by-nc-nd-[34]\.0|cc-by-nc-sa-[234]\.0|openrail|openrail\+\+|creativeml-openrail-m|bigcode-openrail-m"
    r"|bigscience-openrail-m|bigscience-bloom-rail-1\.0|deepfloyd-if-license|fair-noncommercial-research-license"
    r"|h-research|intel-research|apple-ascl|apple-amlr|grok2-community|gemma|llama[234]|llama3\.[123]|unknown|other",
    re.ASCII,
)


def card_metadata(
    *,
    base: str | None,
    pipeline: str,
    is_adapter: bool,
    tags: list[str],
    datasets: list[str],
    title: str,
    accuracies: Mapping[str, tuple[float, str]],
) -> dict[str, Any]:
    """Return the metadata of a model card.

    Args:
        base: The hub name or the folder of the initial model, if it is known.
        pipeline: The hub's name of the task, such as "text-generation".
        is_adapter: Whether the files hold a LoRA adapter.
        tags: The tags.
        datasets: The names of the datasets of Reasoning Gym on which the model was trained.
        title: The title of the card.
        accuracies: The accuracy (0 to 1) by dataset, with the name of the measurement.

    Returns:
        The metadata by key. Values that are unknown are left out.
    """
    matter: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": pipeline,
        "tags": [tag for tag in dict.fromkeys(tags) if _TAG.fullmatch(tag)],
    }
    name, card = _base_card(base)
    if name is not None:
        matter |= {"base_model": name, "base_model_relation": "adapter" if is_adapter else "finetune"}
    matter |= _license(card, name)
    if known := [f"reasoning-gym/{dataset}" for dataset in datasets if _DATASET.fullmatch(dataset)]:
        matter["datasets"] = known
    results = [
        {
            "task": {"type": pipeline},
            "dataset": {"name": f"Reasoning Gym: {dataset}", "type": f"reasoning-gym/{dataset}"},
            "metrics": [{"type": "accuracy", "value": round(value, 6), "name": measurement}],
        }
        for dataset, (value, measurement) in accuracies.items()
        if _DATASET.fullmatch(dataset)
    ]
    if results:
        model = printable(" ".join(title.split()), max_characters=100)
        matter["model-index"] = [{"name": model, "results": results}]
    return matter


def _base_card(base: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """Return the hub name of the base model and the metadata of its card, as far as both are on this machine."""
    if base is None:
        return None, {}
    folder = project_path(base)
    if not folder.exists():
        if not _is_hub_name(base):
            return None, {}
        cached = huggingface_hub.try_to_load_from_cache(base, CARD)
        return base, _read_card(Path(cached)) if isinstance(cached, str) else {}
    card = _read_card(folder / CARD)
    for part in (folder, *folder.resolve().parents[:2]):
        if (match := _CACHED.fullmatch(part.name)) is not None:
            return f"{match[1]}/{match[2]}", card
    # The folder may hold an exported model, whose card names its own base model.
    named = card.get("base_model")
    return (named if isinstance(named, str) and _is_hub_name(named) else None), card


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not any(pair in name for pair in ("--", ".."))


def _read_card(path: Path) -> Mapping[str, Any]:
    """Return the metadata of a card, which is empty if the card has none that can be read."""
    try:
        text = read_bounded(path, max_bytes=_MAX_CARD_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
        if not text.startswith("---\n"):
            return {}
        matter, end, _ = text[4:].partition("\n---")
        # A base loader makes no objects, numbers or dates of the text.
        content = yaml.load(matter, yaml.BaseLoader) if end and "&" not in matter else {}
    except (OSError, ConfigError, yaml.YAMLError, RecursionError, ValueError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


def _license(card: Mapping[str, Any], base: str | None) -> dict[str, str]:
    """Return the license of the base model, which also applies to models that are trained from it."""
    given = card.get("license")
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str) or not _LICENSE.fullmatch(given):
        return {}
    found = {"license": given}
    if given == "other":
        name, link = card.get("license_name"), card.get("license_link")
        if isinstance(name, str) and _LICENSE_NAME.fullmatch(name):
            found["license_name"] = name
        if isinstance(link, str) and _LINK.fullmatch(link):
            found["license_link"] = link
        elif base is not None:
            # Other links are relative to the repository of the base model.
            found["license_link"] = f"https://huggingface.co/{base}"
    return found
