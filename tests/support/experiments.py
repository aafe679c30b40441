"""Compose configurations of the tests' experiments and of configs/ as the command line does."""

from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.paths import CONFIGS, PROJECT_ROOT

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"


def composed(*words: str, name: str = "small", config_dir: Path = EXPERIMENTS) -> DictConfig:
    """Return the configuration of an experiment with these command-line words. It takes a second."""
    _register_plugins_once()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        # Hydra sets its job name only within hydra.main.
        return checked_config(compose(name, overrides=[*words, "trainer.experiment_name=test"]))


@cache
def _register_plugins_once() -> None:
    """Spare the next compositions a tenth of their time, in which Hydra would store verl's tree again."""
    register_plugins()


def project_experiment(name: str, *words: str) -> DictConfig:
    """Return the configuration of an experiment of configs/ with these command-line words."""
    return composed(*words, name=name, config_dir=CONFIGS)


def plain_project_experiment(name: str, run_dir: Path, *words: str) -> dict[str, Any]:
    """Return the plain configuration of `project_experiment` for a run in `run_dir`."""
    return plain_config(project_experiment(name, f"run_dir={run_dir}", *words))


def small_with_model(model: Path, run_dir: Path, *words: str) -> dict[str, Any]:
    """Return the plain configuration for a run of the experiment `small` on a CPU in `run_dir`.

    Unlike in `small_experiment`, values derived from the changed ones change too. It takes a second.

    Args:
        model: The folder of the model.
        run_dir: The folder of the run.
        words: Command-line words such as "algorithm=dapo".
    """
    return plain_config(composed("hardware=cpu", f"actor_rollout_ref.model.path={model}", f"run_dir={run_dir}", *words))


def small_experiment(run_dir: Path, *changes: str) -> DictConfig:
    """Return a new copy of the configuration for a run of the experiment `small` on a CPU in `run_dir`.

    Args:
        run_dir: The folder of the run.
        changes: Changed values such as "trainer.test_freq=2". Values derived from them do not change.
    """
    config = _small_on_cpu().copy()
    folders = [f"run_dir={run_dir}", f"trainer.default_local_dir={run_dir}/checkpoints"]
    config.merge_with_dotlist([*folders, *changes])
    return config


def small_run(run_dir: Path, *changes: str) -> RunConfig:
    """Return the typed view of `small_experiment`."""
    return RunConfig.of(plain_config(small_experiment(run_dir, *changes)))


@cache
def _small_on_cpu() -> DictConfig:
    """Compose the experiment once, because it takes a second."""
    return OmegaConf.create(plain_config(composed("hardware=cpu")))
