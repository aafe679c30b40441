"""Serialise entries to text and back without losing types.

A Reasoning Gym entry accompanies its sample through verl and into result files. Plain JSON would turn tuples into
lists, and then the right answer of arc_agi would score 0.05. So containers and numbers that JSON lacks are tagged.
"""

import hashlib
import json
from fractions import Fraction
from typing import Any

# The first digits of a fingerprint, which identify a problem among millions.
DIGEST_DIGITS = 16

_TAG = "__type__"


def dump_entry(entry: dict[str, Any]) -> str:
    """Return `entry` as one line of JSON, from which `load_entry` restores every value with its type.

    Args:
        entry: A Reasoning Gym entry. Numpy scalars become Python numbers and strings.

    Returns:
        The line, without a newline.

    Raises:
        TypeError: A value has an unsupported type.
    """
    return json.dumps(_encode(entry), ensure_ascii=False, separators=(",", ":"))


def load_entry(text: str) -> dict[str, Any]:
    """Return the entry that `dump_entry` serialised."""
    return _decode(json.loads(text))


def fingerprint(dataset: str, question: str) -> str:
    """Return a hash that identifies a problem by its dataset and question.

    Args:
        dataset: Name of the dataset.
        question: The question. Differences in white space are ignored, because they do not matter to a model.

    Returns:
        32 hexadecimal digits.
    """
    text = dataset + "\0" + " ".join(question.split())
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _encode(value: Any) -> Any:
    if hasattr(value, "dtype") and value.shape == ():  # A numpy scalar, recognised without an import of numpy.
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
    raise TypeError(f"cannot serialise a {type(value).__module__}.{type(value).__name__} in an entry: {value!r:.80}")


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
