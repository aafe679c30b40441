"""Name a run in its trackers, tag it with its seed and experiment, and list the places to look at it."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from rgtrain.config.run_config import RunConfig

_NAME = "trainer.experiment_name"
# Weights & Biases refuses longer tags and names when a run begins, or when an offline run is synced.
_MAX_TAG_CHARS, _MAX_NAME_CHARS = 64, 128


def experiment_of(config: RunConfig) -> str:
    """Return the name of the experiment that Hydra composed, or the tracker's name if Hydra did not compose it."""
    if HydraConfig.initialized() and (name := HydraConfig.get().job.config_name):
        return str(name)
    return str(config.trainer.experiment_name)


def run_name(config: RunConfig) -> str:
    """Return the name of a run in its trackers.

    Returns:
        `trainer.experiment_name` if the user or the experiment's file sets it, or if the folder has that name too.
        Otherwise the name of the run's folder, so that runs of one experiment with several seeds differ.
    """
    name = str(config.trainer.experiment_name)
    folder = config.run_dir.absolute()
    if _is_given(name) or str(folder).endswith(f"/{name}"):
        return name
    return folder.name[:_MAX_NAME_CHARS]


def _is_given(name: str) -> bool:
    if not HydraConfig.initialized() or name != HydraConfig.get().job.config_name:
        return True
    return any(word.lstrip("+").startswith(f"{_NAME}=") for word in HydraConfig.get().overrides.task)


def tag_environment(*, seed: int, experiment: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which trackers tag a run. Trackers without tags get both values in the configuration.

    Args:
        seed: The run's seed.
        experiment: The name of the run's experiment.
        environment: The present variables. Tags of the user are kept.

    Returns:
        WANDB_TAGS, SWANLAB_TAGS and MLFLOW_RUN_CONTEXT.
    """
    own = [f"seed_{seed}", experiment.replace(",", "_")[:_MAX_TAG_CHARS]]
    tags = {}
    for name in ("WANDB_TAGS", "SWANLAB_TAGS"):
        given = [tag.strip() for tag in environment.get(name, "").split(",") if tag.strip()]
        tags[name] = ",".join(dict.fromkeys([*given, *own]))
    # A user's value stays as it is, because it may be in another form.
    context = json.dumps({"seed": str(seed), "experiment": experiment})
    return {**tags, "MLFLOW_RUN_CONTEXT": environment.get("MLFLOW_RUN_CONTEXT", context)}


def logged_in_to_wandb() -> bool:
    """Return whether Weights & Biases can upload a run, or the user has chosen its mode."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def places_to_look(config: RunConfig) -> list[tuple[str, str]]:
    """Return the commands that show a run, by tracker.

    The address of an online run of Weights & Biases is known only when the run has begun.

    Args:
        config: The run's configuration.

    Returns:
        The names of trackers and the commands, with the report as the last.
    """
    run_dir = config.run_dir.absolute()
    places = []
    if "tensorboard" in config.trainer.trackers:
        places.append(("tensorboard", f"tensorboard --logdir {_quoted(run_dir / 'tensorboard')}"))
    if "wandb" in config.trainer.trackers:
        mode = os.environ.get("WANDB_MODE") if logged_in_to_wandb() else "offline"
        sync = f"wandb sync {_quoted(run_dir / 'wandb')}/offline-run-*"
        places.append(
            ("wandb", {"offline": sync, "disabled": "disabled"}.get(mode or "", "online; its address follows"))
        )
    return [*places, ("report", f"python utils/report.py {_quoted(run_dir)}")]


def online_address(trackers: Mapping[str, Any]) -> str | None:
    """Return the address of the run at Weights & Biases, or None if it has none.

    Args:
        trackers: verl's trackers by name, after the run has begun.
    """
    run = getattr(trackers.get("wandb"), "run", None)
    if run is None or run.offline or not run.url:
        return None
    # An anonymous run's address carries its key.
    return str(run.url).partition("?")[0]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
