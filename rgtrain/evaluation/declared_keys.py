"""Declare each key of a YAML file once, as a field of a dataclass with a description and a rule in its metadata."""

import json
import shutil
import textwrap
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from rgtrain.config.value_rules import Rule
from rgtrain.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The layout of the text that `describe` returns: the column of the descriptions, and the longest line.
_INDENT = 24
_MAX_COLUMNS = 120


class Scope(Enum):
    """The set of results that must share one value of a key."""

    COMPARISON = "all evaluations that are compared with each other"
    EVALUATION = "all answers of one evaluation; another model's evaluation may use a different value"
    COMMAND = "the answers of one command; the next command may continue the evaluation with a different value"


@dataclass(frozen=True)
class Key:
    """A declared key.

    Attributes:
        name: The key's name in the file.
        description: One line, for --help.
        rule: The allowed values.
        scope: The set of results that must share one value.
        field: The field of the dataclass.
    """

    name: str
    description: str
    rule: Rule
    scope: Scope
    field: Field[Any]

    @property
    def is_required(self) -> bool:
        """Whether the field has no default."""
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def default(self) -> Any:
        """The field's default; dataclasses.MISSING if the key is required."""
        return self.field.default if self.field.default_factory is MISSING else self.field.default_factory()

    def check(self, value: Any, *, prefix: str = "") -> None:
        """Check a value against the rule.

        Args:
            value: The value in the file.
            prefix: Text before the key's name in the error message, such as "endpoint's " for a nested mapping.

        Raises:
            ConfigError: The rule does not allow the value.
        """
        if not self.rule.allows(value):
            raise ConfigError(f"{prefix}{self.name} is {value!r}; give {self.rule.words}")


def declare(
    description: str, rule: Rule, *, name: str | None = None, scope: Scope = Scope.COMPARISON
) -> dict[str, Any]:
    """Return the metadata that makes a dataclass's field a key.

    Args:
        description: One line, for --help, without a full stop.
        rule: The allowed values.
        name: The key's name in the file, if it differs from the field's name.
        scope: The set of results that must share one value.

    >>> max_tokens: int = field(metadata=declare("longest completion, in tokens", whole_number(1)))
    """
    return {"description": description, "rule": rule, "name": name, "scope": scope}


def keys_of(declared: "type[DataclassInstance]") -> dict[str, Key]:
    """Return the keys that a dataclass declares, by name in the file, in the order of its fields."""
    found = {}
    for field in fields(declared):
        if field.metadata:
            name = field.metadata["name"] or field.name
            found[name] = Key(
                name, field.metadata["description"], field.metadata["rule"], field.metadata["scope"], field
            )
    return found


def describe(declared: "type[DataclassInstance]") -> str:
    """Return one paragraph for each key of a dataclass, with its name, description, rule and default."""
    width = min(shutil.get_terminal_size().columns, _MAX_COLUMNS)
    paragraphs = []
    for name, key in keys_of(declared).items():
        default = "required" if key.is_required else f"default {json.dumps(key.default)}"
        words = f"{key.description} ({key.rule.words}; {default})"
        first, *others = textwrap.wrap(words, max(width - _INDENT, 20), break_on_hyphens=False)
        paragraphs.append(f"\n{' ' * _INDENT}".join([f"  {name:<{_INDENT - 2}}{first}", *others]))
    return "\n".join(paragraphs)
