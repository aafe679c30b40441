"""How hard a problem is, in the terms of its own dataset."""

from collections.abc import Mapping
from typing import Any


def difficulty(entry: Mapping[str, Any]) -> dict[str, float]:
    """What the problem's metadata says of the quantities that its dataset calls its difficulty, as numbers.

    A list counts as its length. Empty where the dataset names none, or only ranges from which all its problems are
    drawn.

    >>> difficulty({"metadata": {"words": ["a", "b"], "n": 3, "difficulty": {"n": [1, 9], "words": [2, 4], "p": 0.5}}})
    {'n': 3, 'words': 2}
    """
    metadata = entry["metadata"]
    named = metadata.get("difficulty")
    if _is_number(named):
        return {"difficulty": named}
    if not isinstance(named, Mapping):
        return {}
    values = {name: metadata.get(name) for name in named if name != "difficulty"}
    sizes = {name: len(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
    return {name: value for name, value in sizes.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
