"""Load functions and classes that a configuration names as `pkg://package.module.name`."""

import importlib
from typing import Any

from rgtrain.errors import ConfigError

PLUGIN_PREFIX = "pkg://"


def load_plugin(name: str, *, kind: str, form: str) -> Any:
    """Import an object by its name.

    Args:
        name: `pkg://package.module.name`.
        kind: The purpose of the object for the error message, such as "reward".
        form: The correct form of a name, for the error message.

    Returns:
        The object.

    Raises:
        ConfigError: The object cannot be imported.
    """
    module, _, attribute = name.removeprefix(PLUGIN_PREFIX).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported ({error}); write {form}") from error
