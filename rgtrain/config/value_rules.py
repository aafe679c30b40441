"""Limits on the values in a configuration."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rgtrain.errors import choose_from


@dataclass(frozen=True)
class Rule:
    """A rule for the values of a key.

    Attributes:
        words: A description of the allowed values. It ends the message "max_tokens is 0; give ...".
        allows: Returns whether a value is allowed.
        read: Converts an allowed value. It raises ConfigError for a mistake that `allows` can't find.
        choices: The allowed texts, if the rule lists them.
    """

    words: str
    allows: Callable[[Any], bool] = lambda value: True
    read: Callable[[Any], Any] = lambda value: value
    choices: tuple[str, ...] = ()

    def advice(self, given: Any) -> str:
        """Return the end of a message that refuses a value, with the nearest choice or the description."""
        wrong = [one for one in (given if isinstance(given, list) else [given]) if one not in self.choices]
        if self.choices and wrong and isinstance(wrong[0], str):
            return choose_from(wrong[0], self.choices)
        if isinstance(given, str) and (meant := _number_in(given)) is not None and self.allows(meant):
            return f"give {self.words}, without quotes"
        return f"give {self.words}"


def _number_in(text: str) -> float | None:
    """Return the number that a text spells, such as 1e-05 for "1e-5"."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def whole_number(low: int, high: int | None = None) -> Rule:
    """Return a rule that allows whole numbers from `low` up, or to `high`."""
    return Rule(
        f"a whole number from {low} {'up' if high is None else f'to {high}'}",
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
        ),
    )


def number(allows: Callable[[float], bool], words: str) -> Rule:
    """Return a rule, described by `words`, that allows the finite numbers that `allows` accepts."""
    return Rule(
        words,
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
            and allows(value)
        ),
    )


def one_of(*choices: str) -> Rule:
    """Return a rule that allows only these texts."""
    return Rule(
        f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices, choices=choices
    )


def or_null(rule: Rule, meaning: str) -> Rule:
    """Extend a rule so that it also allows null.

    Args:
        rule: The rule for other values.
        meaning: The meaning of null, for messages and --help.

    Returns:
        A rule that reads null as None.
    """
    return _with_null(rule, f"{rule.words}, or null for {meaning}")


def nullable(rule: Rule) -> Rule:
    """Extend a rule so that it also allows null, without a meaning in its description."""
    return _with_null(rule, f"{rule.words}, or null")


def _with_null(rule: Rule, words: str) -> Rule:
    return Rule(
        words,
        lambda value: value is None or rule.allows(value),
        lambda value: None if value is None else rule.read(value),
        rule.choices,
    )


def either(first: Rule, second: Rule) -> Rule:
    """Return a rule that allows the values of two rules."""
    return Rule(f"{first.words} or {second.words}", lambda value: first.allows(value) or second.allows(value))


def list_of(item: Rule, words: str) -> Rule:
    """Return a rule for a list, which reads a single item as a list of one.

    Args:
        item: The rule for each item.
        words: The description, such as "a list of texts".

    Returns:
        The rule.
    """
    return Rule(
        words,
        lambda value: all(map(item.allows, value)) if isinstance(value, list) else item.allows(value),
        lambda value: value if isinstance(value, list) else [value],
        item.choices,
    )


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str) and bool(value.strip()))
MAPPING = Rule("a mapping such as `{timeout_s: 5}`", lambda value: isinstance(value, Mapping))
