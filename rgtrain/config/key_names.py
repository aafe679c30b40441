"""Find declared keys, and the nearest ones to a mistyped key."""

import difflib
from collections.abc import Iterator

from omegaconf import DictConfig

from rgtrain.errors import choose_from


def unknown_key(key: str, *, declared: DictConfig) -> str:
    """Return the message that refuses an undeclared key and names the nearest declared ones.

    Args:
        key: The full key.
        declared: All keys with their defaults.
    """
    parts = key.split(".")
    section, number = declared, 0
    while number < len(parts) - 1 and isinstance(child := section._get_node(parts[number]), DictConfig):
        section, number = child, number + 1
    if not section:
        return f"unknown key {key!r}; {'.'.join(parts[:number])} has no keys"
    full_name = ".".join(parts[: number + 1])
    names = [str(name) for name in section]
    if parts[number] in names:
        return f"unknown key {key!r}; {full_name} is a single value without keys"
    if not difflib.get_close_matches(parts[number], names) and (near := _nearest(parts[-1], key, declared)):
        return f"unknown key {key!r}; did you mean {' or '.join(map(repr, near))}?"
    place = f"under {'.'.join(parts[:number])}" if number else "at the top level"
    return f"unknown key {full_name!r}; {choose_from(parts[number], names)} {place}"


def is_open(key: str, *, declared: DictConfig) -> bool:
    """Return whether a key is inside a mapping that is declared empty, and so takes any key."""
    section = declared
    for part in key.split(".")[:-1]:
        child = section._get_node(part)
        if not isinstance(child, DictConfig):
            return False
        if not len(child):
            return True
        section = child
    return False


def _nearest(name: str, key: str, declared: DictConfig) -> list[str]:
    """Return up to three full keys, first those that end with `name`, then those that end similarly."""
    keys = list(_all_keys(declared, path=""))
    last_parts = {each.rpartition(".")[2] for each in keys}
    similar = [name] if name in last_parts else difflib.get_close_matches(name, last_parts, n=3, cutoff=0.75)
    found = [each for each in keys if each.rpartition(".")[2] in similar]
    if "." not in key:
        return found[:3]
    return sorted(found, key=lambda each: -difflib.SequenceMatcher(None, key, each).ratio())[:3]


def _all_keys(section: DictConfig, *, path: str) -> Iterator[str]:
    for key in section:
        full_name, child = f"{path}.{key!s}" if path else str(key), section._get_node(key)
        yield full_name
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _all_keys(child, path=full_name)
