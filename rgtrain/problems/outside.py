"""What a configuration names as `pkg://package.module.name`: a part of somebody else's package."""

import importlib
from typing import Any

from rgtrain.errors import ConfigError

OUTSIDE = "pkg://"


def import_outside(name: str, *, kind: str, form: str) -> Any:
    """The object that `name` names. Raises ConfigError, which says what it is for (`kind`) and how to write it."""
    module, _, attribute = name.removeprefix(OUTSIDE).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}; write {form}") from error
