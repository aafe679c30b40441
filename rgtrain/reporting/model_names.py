"""Names of evaluated models, and which of two models was trained from the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.base_models import is_same_model, read_base_model
from rgtrain.evaluation.evaluation_model import ENDPOINT


def distinct_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each model: as few of the last parts of its path as make the names distinct.

    Args:
        paths: Paths, hub names or models of an endpoint. If two are equal, their names get a number.

    >>> distinct_names(["runs/a/hf", "runs/b/hf"])
    ['a/hf', 'b/hf']
    """
    parts = [Path(path.removeprefix(ENDPOINT)).parts or (path,) for path in paths]
    num_distinct = len(set(parts))
    longest = max(map(len, parts))
    lengths = range(1, longest + 1)
    length = next(n for n in lengths if len({part[-n:] for part in parts}) == num_distinct or n == longest)
    names = ["/".join(part[-length:]).replace("//", "/") for part in parts]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def is_trained_from(summary: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Return whether the model of an evaluation was trained from that of another one.

    Args:
        summary: The summary of the evaluation of the trained model.
        base: The summary of the other evaluation.
    """
    path, base_path = summary["model"]["path"], base["model"]["path"]
    # Older versions did not record it, but the model may still be on this machine.
    origin = summary.get("trained_from") or read_base_model(Path(path))
    return isinstance(origin, str) and not base_path.startswith(ENDPOINT) and is_same_model(origin, base_path)
