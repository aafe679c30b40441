"""Find the model from which a model was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rgtrain.checkpoints.untrusted_files import read_bounded, read_json_object
from rgtrain.errors import ConfigError
from rgtrain.paths import project_path
from rgtrain.yaml_files import load_without_aliases

# From the rank files in RUN/checkpoints/global_step_N/actor up to RUN.
_MAX_LEVELS = 4
_MAX_BYTES = 2**20
_MAX_CHARACTERS = 4096


def read_base_model(folder: Path) -> str | None:
    """Return the model from which a model was trained.

    Args:
        folder: The folder of an exported model, of an adapter or of a checkpoint. It may not exist.

    Returns:
        A hub name or the absolute path of a folder: the base model that the adapter names, or the initial model of the
        run in whose folder the model is. None if neither is known.
    """
    if not folder.is_dir():
        return None
    name = _named_by_adapter(folder) or _named_by_run(folder)
    # A control character would only disturb the pages that show the name.
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_CHARACTERS:
        return None
    path = project_path(name).resolve()
    if path == folder.resolve():
        return None
    return str(path) if path.is_dir() else name


def is_same_model(one: str, other: str) -> bool:
    """Return whether two hub names or paths mean the same model."""
    return one == other or project_path(one).resolve() == project_path(other).resolve()


def _named_by_adapter(folder: Path) -> Any:
    try:
        return read_json_object(folder / "adapter_config.json", max_bytes=_MAX_BYTES).get("base_model_name_or_path")
    except (OSError, ConfigError):
        return None


def _named_by_run(folder: Path) -> Any:
    for above in (folder, *folder.absolute().parents)[: _MAX_LEVELS + 1]:
        try:
            config = load_without_aliases(read_bounded(above / "config.yaml", max_bytes=_MAX_BYTES))
        # PyYAML's constructors raise errors of many types for unexpected values.
        except (OSError, ConfigError, yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError):
            continue
        node: Any = config
        for key in ("actor_rollout_ref", "model", "path"):
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is not None:
            return node
    return None
