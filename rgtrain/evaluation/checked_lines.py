"""Read lines of JSON whose every field is checked. They may be damaged by a crash, a full disk or an editor."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

# Larger than any count that the project writes, and the largest that every reader of JSON reads exactly.
_MAX_COUNT = 1 << 53
# Python refuses to convert longer whole numbers to floats.
_MAX_NUMBER = 10**300
Check = Callable[[Any], bool]


def parse_line(line: bytes, checks: Mapping[str, Check], *, optional: Collection[str] = ()) -> dict[str, Any]:
    """Parse a line of JSON and check its fields.

    Args:
        line: The line, with or without its newline.
        checks: For each field, a function that returns whether a value is allowed.
        optional: Fields that may be absent.

    Returns:
        The values by field.

    Raises:
        ValueError: The line is not a JSON mapping, a field is missing or unknown, or a value is not allowed.
    """
    try:
        values = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error!s:.100}") from error
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__} instead of a mapping")
    for name in checks:
        if name not in values and name not in optional:
            raise ValueError(f"it has no {name}")
    for name, value in values.items():
        if name not in checks:
            raise ValueError(f"it has an unknown field {name!r:.60}")
        if not checks[name](value):
            raise ValueError(f"{name} is {_start(value)}")
    return values


def is_text(value: Any) -> bool:
    """Return whether `value` is a text."""
    return isinstance(value, str)


def is_text_or_none(value: Any) -> bool:
    """Return whether `value` is a text or None."""
    return value is None or isinstance(value, str)


def is_count(value: Any) -> bool:
    """Return whether `value` is a whole number from 0 to 2**53."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def is_count_or_none(value: Any) -> bool:
    """Return whether `value` is a whole number from 0 to 2**53, or None."""
    return value is None or is_count(value)


def is_finite(value: Any) -> bool:
    """Return whether `value` is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _MAX_NUMBER if isinstance(value, int) else math.isfinite(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def _start(value: Any) -> str:
    # A damaged value may be deeply nested, which repr refuses.
    return f"{value!r:.60}" if not isinstance(value, dict | list) else f"a {type(value).__name__}"
