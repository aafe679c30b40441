"""The tests' own experiment as a configuration, composed once: composing takes seconds."""

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.paths import PROJECT_ROOT

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"


def small_experiment(run_dir: Path, *changes: str) -> DictConfig:
    """Return a configuration of its own for a run of the experiment `small` on a CPU in `run_dir`.

    Args:
        run_dir: The folder of the run.
        changes: Changed keys, such as "trainer.test_freq=2". Values that are derived from them stay as they were.
    """
    config = _composed().copy()
    folders = [f"run_dir={run_dir}", f"trainer.default_local_dir={run_dir}/checkpoints"]
    config.merge_with_dotlist([*folders, *changes])
    return config


@cache
def _composed() -> DictConfig:
    register_plugins()
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        config = checked_config(compose("small", overrides=["hardware=cpu", "trainer.experiment_name=test"]))
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))
