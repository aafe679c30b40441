"""Load functions and classes of other packages, which a configuration names as `pkg://package.module.name`."""

import importlib
from typing import Any

from rgtrain.errors import ConfigError

PLUGIN_PREFIX = "pkg://"


def load_plugin(name: str, *, kind: str, form: str) -> Any:
    """Import the object that `name` names.

    Args:
        name: `pkg://package.module.name`.
        kind: The purpose of the object, such as "reward", for the error message.
        form: How to write a right name, for the error message.

    Raises:
        ConfigError: There is no such object.
    """
    module, _, attribute = name.removeprefix(PLUGIN_PREFIX).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}; write {form}") from error
