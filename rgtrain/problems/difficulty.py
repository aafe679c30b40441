"""Read the difficulty of a problem from its metadata."""

from collections.abc import Mapping
from typing import Any


def difficulty(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the quantities that the dataset lists as a problem's difficulty, as numbers.

    Args:
        entry: A Reasoning Gym entry. Its metadata may have a number or a mapping of quantities under `difficulty`.

    Returns:
        Values by name, with lists replaced by their lengths. It is empty if the dataset lists no quantity, or only the
        ranges that all its problems are drawn from.

    >>> metadata = dict(words=["a", "b"], n=3, difficulty=dict(n=[1, 9], words=[2, 4], p=0.5))
    >>> difficulty(dict(metadata=metadata)) == dict(n=3, words=2)
    True
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
