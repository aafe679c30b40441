"""Entries as text, with their types.

A Reasoning Gym entry travels with its sample through verl and into result files. Plain JSON would turn tuples into
lists, and then the right answer of arc_agi scores 0.05; so containers and numbers that JSON lacks are tagged.
"""

import hashlib
import json
from fractions import Fraction
from typing import Any

_TAG = "__type__"


def dump_entry(entry: dict[str, Any]) -> str:
    """`entry` as one line of JSON from which `load_entry` restores every value with its type.

    Numpy scalars come back as the Python numbers and strings they equal.
    Raises TypeError on a value of a type no Reasoning Gym dataset is known to use.
    """
    return json.dumps(_encode(entry), ensure_ascii=False, separators=(",", ":"))


def load_entry(text: str) -> dict[str, Any]:
    """The entry that `dump_entry` wrote."""
    return _decode(json.loads(text))


def fingerprint(dataset: str, question: str) -> str:
    """32 hex digits that two problems share exactly if they ask the same question of the same dataset.

    White space does not count: a problem that differs only there is the same problem to a model.
    """
    text = dataset + "\0" + " ".join(question.split())
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _encode(value: Any) -> Any:
    if hasattr(value, "dtype") and value.shape == ():  # numpy scalar; numpy itself need not be imported
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: _encode(item) for key, item in value.items()}
        return {_TAG: "dict", "items": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TAG: "tuple", "items": [_encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {_TAG: type(value).__name__, "items": sorted((_encode(item) for item in value), key=repr)}
    if isinstance(value, Fraction):
        return {_TAG: "fraction", "items": [value.numerator, value.denominator]}
    if isinstance(value, complex):
        return {_TAG: "complex", "items": [value.real, value.imag]}
    raise TypeError(f"cannot carry a {type(value).__module__}.{type(value).__name__} in an entry: {value!r:.80}")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: _decode(item) for key, item in value.items()}
    items = _decode(value["items"])
    match value[_TAG]:
        case "dict":
            return {key: item for key, item in items}
        case "tuple":
            return tuple(items)
        case "set":
            return set(items)
        case "frozenset":
            return frozenset(items)
        case "fraction":
            return Fraction(*items)
        case "complex":
            return complex(*items)
        case other:
            raise ValueError(f"unknown type tag {other!r} in an entry")
