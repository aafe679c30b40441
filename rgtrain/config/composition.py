"""Compose configurations with Hydra: its search path, its resolvers and the keys that are declared.

This module imports neither verl nor torch, so a mistake in a file is reported within a second.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rgtrain.config.key_names import unknown_key
from rgtrain.config.leaf_rules import check_values, interpolated_keys
from rgtrain.config.model_source import ModelSource
from rgtrain.config.prompt_values import read_examples_file, read_prompt_file
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import cpu_dtype, num_gpus
from rgtrain.paths import CONFIGS, PROJECT_ROOT, setup_command


class ProjectSearchPath(SearchPathPlugin):
    """Adds configs/ to Hydra's search path, so that any configuration file in any folder finds it, and ModelSource."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add configs/ and the models that have no choice there."""
        search_path.append("rgtrain", f"file://{CONFIGS}")
        search_path.append("rgtrain", f"{ModelSource.scheme()}://")


def register_plugins() -> None:
    """Register the search path, verl's tree and the resolvers that configs/ uses; call it before `hydra.main`."""
    Plugins.instance().register(ModelSource)
    Plugins.instance().register(ProjectSearchPath)
    # Stored as one tree, because composing its 30 files takes half of the time of a whole composition.
    ConfigStore.instance().store(name="verl", node=verl_tree())
    resolvers: dict[str, Callable[..., Any]] = {
        "project_root": lambda: str(PROJECT_ROOT),
        "detected_hardware": detected_hardware,
        "cpu_dtype": cpu_dtype,
        "num_gpus": lambda: max(1, num_gpus()),
        # Marks a key for which rgtrain/preflight/gpu_settings.py chooses a value.
        "chosen": lambda default: default,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    OmegaConf.register_new_resolver("for_engine", value_for_engine, replace=True)


def value_for_engine(fast: Any, verl: Any, *, _root_: DictConfig) -> Any:
    """Return the value of a setting that depends on the configuration's `engine`.

    Args:
        fast: The value with engine=fast.
        verl: The value with engine=verl.
        _root_: The whole configuration. OmegaConf passes it to a parameter of this name.

    Returns:
        One of the two values.
    """
    return verl if _root_.engine == "verl" else fast


def detected_hardware() -> str:
    """Return the choice of configs/hardware for this machine: "gpu" if it has GPUs, otherwise "cpu"."""
    return "gpu" if num_gpus() else "cpu"


@cache
def verl_tree() -> DictConfig:
    """Return the configuration of verl's PPO trainer, composed from its files."""
    return _composed_by_verl("ppo_trainer")


@cache
def verl_sft_tree() -> DictConfig:
    """Return the configuration of verl's SFT trainer, composed from its files. Not inside of Hydra's own command."""
    return _composed_by_verl("sft_trainer_engine")


def _composed_by_verl(name: str) -> DictConfig:
    with initialize_config_dir(str(_verl_configs()), version_base="1.3"):
        tree = compose(name)
    OmegaConf.set_struct(tree, False)
    return tree


def _verl_configs() -> Path:
    """Return the folder of verl's configuration without importing verl, which takes seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ConfigError(f"verl is not installed; run `{setup_command()}`")
    return Path(spec.origin).parent / "trainer" / "config"


def checked_config(config: DictConfig) -> DictConfig:
    """Resolve `config`, check its keys and values, and read the files of its prompt.

    verl's tree or base.yaml declares each key, and rgtrain/config/leaf_rules.py says which values it takes. Hydra
    itself refuses unknown keys only on the command line, not in files.

    Returns:
        The same object, resolved. A single value of a key that takes a list has become a list of one.

    Raises:
        ConfigError: A key is undeclared (the message suggests the nearest declared one), an interpolation fails, values
            are unusable, or a file of the prompt cannot be read.
    """
    unknown = list(_undeclared(config, declared_tree(), path=""))
    if unknown:
        raise ConfigError("; ".join(unknown))
    if missing := list(_missing(config, declared_tree(), path="")):
        raise ConfigError(_missing_message(missing))
    interpolated = set(interpolated_keys(config))
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        broken = "; ".join(_broken_references(config)) or " ".join(str(error).split())
        raise ConfigError(f"the configuration cannot be resolved: {broken}") from error
    check_values(config, declared=declared_tree(), interpolated=interpolated)
    _record_prompt_files(config)
    return config


def _record_prompt_files(config: DictConfig) -> None:
    """Replace the files that `data.prompt` of a resolved configuration names by their content."""
    prompt = config.data.prompt
    for name, read in (("system_prompt", read_prompt_file), ("examples", read_examples_file)):
        node = prompt._get_node(name)
        if isinstance(node, DictConfig | ListConfig):
            continue
        given = node._value()
        if (value := read(given, key=f"data.prompt.{name}")) is not given:
            prompt[name] = _without_references(value)


def _without_references(value: Any) -> Any:
    """Return a value whose texts OmegaConf cannot take for references: a text with `${` becomes bytes.

    `plain_config` turns bytes into texts again.
    """
    if isinstance(value, str):
        return value.encode() if "${" in value else value
    if isinstance(value, dict):
        return {name: _without_references(one) for name, one in value.items()}
    return [_without_references(one) for one in value] if isinstance(value, list) else value


def model_path(config: DictConfig) -> str:
    """Return the path or hub name of the model of a composed configuration, whose other values may be unusable."""
    return str(config.actor_rollout_ref.model.path)


@cache
def declared_tree() -> DictConfig:
    """Return all keys that a configuration may have, those of verl's tree and those of the project's base.yaml."""
    project = OmegaConf.load(CONFIGS / "base.yaml")
    if not isinstance(project, DictConfig):
        raise ConfigError(f"{CONFIGS / 'base.yaml'} holds no mapping; restore the file")
    for key in ("defaults", "hydra"):
        del project[key]
    tree = verl_tree().copy()
    tree.merge_with(project)
    return tree


def is_declared(key: str) -> bool:
    """Return whether a configuration may have this full key."""
    node: Any = declared_tree()
    for name in key.split("."):
        if not isinstance(node, DictConfig) or not len(node):
            return True
        if name not in node:
            return False
        node = _child(node, name)
    return True


def with_declared_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved plain configuration in which keys that it lacks have their declared defaults.

    A run's config.yaml lacks the keys that are newer than the run.
    """
    return _filled(saved, declared_tree(), OmegaConf.merge(declared_tree(), saved))


def _filled(saved: Mapping[str, Any], declared: DictConfig, merged: Any) -> dict[str, Any]:
    filled = dict(saved)
    for key in map(str, declared):
        default = _child(declared, key)
        if key not in filled:
            # A default may refer to a value that exists only while a run is composed.
            with suppress(OmegaConfBaseException):
                value = merged[key]
                filled[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        elif isinstance(filled[key], Mapping) and isinstance(default, DictConfig) and len(default):
            filled[key] = _filled(filled[key], default, merged[key])
    return filled


def _undeclared(given: DictConfig, declared: DictConfig, *, path: str) -> Iterator[str]:
    names = set(declared.keys())
    for key in given:
        name = str(key)
        full_name = f"{path}.{name}" if path else name
        if key not in names:
            yield unknown_key(full_name, declared=declared_tree())
            continue
        child, allowed = _child(given, key), _child(declared, key)
        # A mapping that is declared empty takes any key, for example data.mixture or an engine's arguments.
        if isinstance(child, DictConfig) and isinstance(allowed, DictConfig) and len(allowed):
            yield from _undeclared(child, allowed, path=full_name)


def _broken_references(config: DictConfig) -> list[str]:
    """Return messages on references that cannot be resolved, without those that only refer to others of them."""
    broken = {}
    for key in interpolated_keys(config):
        section, _, name = key.rpartition(".")
        try:
            OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            given = _child(OmegaConf.select(config, section) if section else config, name)._value()
            problem = str(error).split("\n")[0].replace("Recursive interpolation detected", "it refers to itself")
            if absent := re.search("Interpolation key '(.+?)'", problem):
                problem = unknown_key(absent[1], declared=declared_tree())
            broken[key] = (given, problem)
    messages = {key: f"{key} is {given!r}: {problem}" for key, (given, problem) in broken.items()}
    causes = [
        messages[key]
        for key, (given, _) in broken.items()
        if not set(re.findall(r"\$\{([\w.]+)\}", given)) & set(broken)
    ]
    return causes or [messages[key] for key in sorted(messages, key=len)[:1]]


def _missing(given: DictConfig, declared: DictConfig, *, path: str) -> Iterator[str]:
    for key in declared:
        full_name = f"{path}.{key!s}" if path else str(key)
        child, default = given._get_node(key, validate_access=False), _child(declared, key)
        if child is None:
            yield full_name
        elif isinstance(child, DictConfig) and isinstance(default, DictConfig) and not child._is_none():
            yield from _missing(child, default, path=full_name)


def _missing_message(names: list[str]) -> str:
    if "algorithm" in names and "data" in names:
        return "the experiment does not start from configs/base.yaml; put `defaults: [/base, _self_]` at its top"
    return "; ".join(f"{name} is missing; do not delete it, give it a value" for name in names)


def _child(config: DictConfig, key: Any) -> Any:
    return config._get_node(key)
