"""Import other packages: those of `plugins`, which register datasets, and objects that a configuration names.

A configuration lists packages under `plugins`. They are imported before anything else in every process that makes or
judges problems. A process that starts another one passes on `imported_plugins()`.
"""

import importlib
import re
import traceback
from collections.abc import Sequence
from typing import Any

from reasoning_gym.factory import CURRICULA, DATASETS

from rgtrain.errors import ConfigError

PLUGIN_PREFIX = "pkg://"
FUNCTION_FORM = f"{PLUGIN_PREFIX}package.module.function"
_PLUGIN_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::[A-Za-z_]\w*)?", re.ASCII)
_PLUGIN_FORM = "a package, as in `my_tasks`, or a function that registers datasets, as in `my_tasks:register`"
# Modules of this package that register the tasks of another one, because its own registration is not reproducible.
_ADAPTERS = {"reasoning_core": "rgtrain.problems.reasoning_core_tasks"}
# The datasets that each plugin has registered in this process.
_registered: dict[str, tuple[str, ...]] = {}


def import_plugins(names: Sequence[str]) -> list[str]:
    """Import packages, so that the datasets that they register with Reasoning Gym can be used.

    A package that was imported before is not imported again.

    Args:
        names: `package.module`, or `package.module:function` for a package that registers its datasets only when that
            function is called without arguments.

    Returns:
        Notices of one line each about packages that register no dataset.

    Raises:
        ConfigError: A package cannot be imported, or replaces a dataset.
    """
    for name in names:
        if not isinstance(name, str) or not _PLUGIN_NAME.fullmatch(name):
            raise ConfigError(f"plugins has {name!r}; write {_PLUGIN_FORM}")
        if name not in _registered:
            _registered[name] = _import_plugin(name)
    return [
        f"plugin {name!r} registers no dataset; if it should, call reasoning_gym.register_dataset when it is imported"
        for name in names
        if not _registered[name]
    ]


def imported_plugins() -> tuple[str, ...]:
    """Return the plugins that this process has imported, in order."""
    return tuple(_registered)


def _import_plugin(name: str) -> tuple[str, ...]:
    """Import a plugin and return the names of its datasets."""
    module, _, function = _ADAPTERS.get(name, name).partition(":")
    datasets, curricula = dict(DATASETS), dict(CURRICULA)
    try:
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
        replaced = [key for key in datasets if DATASETS.get(key) is not datasets[key]]
        replaced += [key for key in curricula if CURRICULA.get(key) is not curricula[key]]
        if replaced:
            raise ConfigError(
                f"plugin {name!r} replaces the dataset {replaced[0]!r}; register it under another name, because runs "
                "and audits know the original by this one"
            )
    except BaseException as error:
        _restore(datasets, curricula)
        if isinstance(error, ConfigError | KeyboardInterrupt | GeneratorExit):
            raise
        raise ConfigError(f"plugin {name!r} cannot be imported ({_reason(error)}); {_fix(error, module)}") from error
    return tuple(key for key, (cls, _) in DATASETS.items() if key not in datasets or _is_part(cls.__module__, module))


def _is_part(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _restore(datasets: dict[str, Any], curricula: dict[str, Any]) -> None:
    for registry, before in ((DATASETS, datasets), (CURRICULA, curricula)):
        registry.clear()
        registry.update(before)


def _reason(error: BaseException) -> str:
    """Return an error in one line, with the place in the plugin that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f", {frames[-1].filename} line {frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _fix(error: BaseException, module: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and _is_part(module, error.name):
        return "install it into this Python environment, or add its folder to PYTHONPATH"
    if isinstance(error, ValueError) and "already registered" in str(error):
        return "register the dataset under another name"
    return "correct the package, or remove it from plugins"


def load_plugin(name: str, *, kind: str, form: str = FUNCTION_FORM) -> Any:
    """Import an object by its name. A module that registers datasets becomes a plugin.

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
    before = set(DATASETS)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # The module may raise any type when it is imported.
        reason = str(error) if isinstance(error, ImportError | AttributeError | ValueError) else _reason(error)
        raise ConfigError(f"{kind} {name!r} cannot be imported ({reason}); write {form}") from error
    # Then processes that are started later know these datasets too.
    if added := tuple(key for key in DATASETS if key not in before):
        _registered[module] = added
    return found
