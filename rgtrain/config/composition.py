"""Hydra composition: where configuration files are found, what they may ask, and which keys are declared.

Imports neither verl nor torch, so that a mistake in a file is reported in a second.
"""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rgtrain.errors import ConfigError, choose_from
from rgtrain.machine.devices import cpu_dtype, gpu_memories_gb
from rgtrain.paths import CONFIGS, PROJECT_ROOT


class ProjectSearchPath(SearchPathPlugin):
    """Finds the project's configs from whichever file a run starts, in whichever folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("rgtrain", f"file://{CONFIGS}")


def register_plugins() -> None:
    """Make the search path, verl's tree and the resolvers used in configs/ known; call before `hydra.main`."""
    Plugins.instance().register(ProjectSearchPath)
    # As one piece: its 30 files took half of the time that a configuration takes.
    ConfigStore.instance().store(name="verl", node=verl_tree())
    resolvers = {
        "project_root": lambda: str(PROJECT_ROOT),
        "detected_hardware": detected_hardware,
        "cpu_dtype": cpu_dtype,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def detected_hardware() -> str:
    """The choice of configs/hardware for this machine: by the number and memory of its GPUs, else "gpu" or "cpu"."""
    memories = gpu_memories_gb()
    if not memories:
        return "cpu"
    fitting = []
    for path in (CONFIGS / "hardware").glob(f"{len(memories)}x*gb.yaml"):
        if re.fullmatch(r"\d+x\d+gb", path.stem) and min(memories) >= (size := int(path.stem.split("x")[1][:-2])):
            fitting.append((size, path.stem))
    return max(fitting)[1] if fitting else "gpu"


@cache
def verl_tree() -> DictConfig:
    """verl's own configuration, composed from its files."""
    with initialize_config_dir(str(_verl_configs()), version_base="1.3"):
        tree = compose("ppo_trainer")
    OmegaConf.set_struct(tree, False)
    return tree


def _verl_configs() -> Path:
    """The folder of verl's own configuration, found without importing verl, which takes seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ConfigError("verl is not installed: run `bash train.sh setup`")
    return Path(spec.origin).parent / "trainer" / "config"


def checked_config(config: DictConfig) -> DictConfig:
    """`config` resolved, with every key declared by verl's tree or by base.yaml.

    Raises ConfigError naming an undeclared key with the nearest declared one. Hydra itself refuses unknown keys on
    the command line only, not inside files.
    """
    unknown = list(_undeclared(config, declared_tree(), path=""))
    if unknown:
        raise ConfigError("; ".join(unknown))
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    return config


@cache
def declared_tree() -> DictConfig:
    """All keys a configuration may have: verl's own tree under the project's base.yaml."""
    project = OmegaConf.load(CONFIGS / "base.yaml")
    if not isinstance(project, DictConfig):
        raise ConfigError(f"{CONFIGS / 'base.yaml'} holds no mapping")
    for key in ("defaults", "hydra"):
        del project[key]
    tree = verl_tree().copy()
    tree.merge_with(project)
    return tree


def _undeclared(given: DictConfig, declared: DictConfig, *, path: str) -> Iterator[str]:
    names = set(declared.keys())
    for key in given:
        name = str(key)
        inside = f"{path}.{name}" if path else name
        if key not in names:
            where = f"under {path}" if path else "at the top"
            yield f"unknown key {inside!r}; {choose_from(name, map(str, declared))} {where}"
            continue
        child, allowed = _child(given, key), _child(declared, key)
        # An empty mapping is declared open, such as data.mixture or an engine's own arguments.
        if isinstance(child, DictConfig) and isinstance(allowed, DictConfig) and len(allowed):
            yield from _undeclared(child, allowed, path=inside)


def _child(config: DictConfig, key: Any) -> Any:
    return config._get_node(key)
