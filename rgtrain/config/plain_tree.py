"""Read plain nested mappings by dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf. An empty mapping is a leaf."""
    if not isinstance(tree, Mapping) or not tree:
        yield path, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def lookup(tree: Any, key: str, default: Any = None) -> Any:
    """Return the value at a dotted key, or `default` if there is none."""
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return default
        tree = tree[name]
    return tree
