"""Limits on the values that a configuration may give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """The values that a key may have.

    Attributes:
        words: These values in words. They end the message "max_tokens is 0; give ...".
        allows: Whether a given value is one of them.
        read: Turns an allowed value into the one to use. It raises ConfigError if only it can find the mistake.
    """

    words: str
    allows: Callable[[Any], bool] = lambda value: True
    read: Callable[[Any], Any] = lambda value: value
