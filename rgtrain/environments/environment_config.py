"""Compose the configuration of an environment from an experiment, overrides and plain values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.hydra_errors import check_experiment, composition_errors_as_config_errors, parse_options
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.paths import CONFIGS, path_from_here
from rgtrain.preflight.open_settings import read_template

# Without an experiment, an environment starts from the defaults of all experiments.
_DEFAULTS = "base"
# Hydra sets the name of its job only for its own command line, and some keys derive from it.
_JOB_NAME = "trainer.experiment_name=environment"


def compose_experiment(
    experiment: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    replace: Mapping[str, Any] | None = None,
    merge: Mapping[str, Mapping[str, Any]] | None = None,
    with_template: bool = False,
) -> RunConfig:
    """Compose and check a configuration as the training command does.

    Args:
        experiment: The name of an experiment of configs/, or the path of an experiment file, which ends with .yaml.
            None starts from the defaults of all experiments.
        overrides: Words of the training command, such as "mixture=math" or "seed=2".
        replace: New values by full key, in place of the experiment's.
        merge: Mappings by full key. Their values replace those of the experiment's mappings one by one.
        with_template: Whether to fill in null values by the chat template of the experiment's model, as training does.

    Returns:
        The configuration.

    Raises:
        ConfigError: There is no such experiment, or the configuration cannot be used.
    """
    name, folder = _DEFAULTS, CONFIGS
    words = list(overrides)
    if experiment is not None:
        name = str(experiment)
        if name.endswith(".yaml") and (file := path_from_here(name).absolute()).is_file():
            name, folder = file.stem, file.parent
            words = ["--config-path", str(folder), *words]
        words = ["--config-name", name, *words]
    options = parse_options(words)
    check_experiment(options)
    register_plugins()
    with composition_errors_as_config_errors(options), initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name, overrides=[*options.overrides, _JOB_NAME])
    for changes, is_merged in ((replace, False), (merge, True)):
        for key, value in (changes or {}).items():
            try:
                OmegaConf.update(config, key, _plain(value), merge=is_merged, force_add=True)
            except (OmegaConfBaseException, TypeError, ValueError) as error:
                raise ConfigError(f"{key} is {value!r:.200}, which is no configuration value: {error}") from error
    checked = checked_config(config.copy())
    if with_template:
        checked = read_template(config, checked)
    return RunConfig.of(plain_config(checked))


def _plain(value: Any) -> Any:
    """Return a value with dicts and lists in place of other mappings and sequences, which OmegaConf refuses."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
