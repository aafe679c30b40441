"""Limits on the values in a configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A rule for the values of a key.

    Attributes:
        words: A description of the allowed values. It ends the message "max_tokens is 0; give ...".
        allows: Returns whether a value is allowed.
        read: Converts an allowed value. It raises ConfigError for a mistake that `allows` can't find.
    """

    words: str
    allows: Callable[[Any], bool] = lambda value: True
    read: Callable[[Any], Any] = lambda value: value
