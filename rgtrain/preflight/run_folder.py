"""The folder of a run: whether it can be written, and whether what is there goes with this run."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rgtrain.errors import ConfigError
from rgtrain.preflight.disk import existing_parent
from rgtrain.provenance import masked_values

_MAY_CHANGE = ("trainer", "ray_kwargs", "run_dir", "preflight")


def check_run_folder(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where the run can't write its folder, or can't go on from what is there."""
    run_dir = Path(config["run_dir"])
    check_run_dir(run_dir)
    # As launch.py saves them: a secret is no difference between two runs.
    check_same_run(masked_values(config), run_dir)
    check_resume(config["trainer"])


def check_run_dir(run_dir: Path) -> None:
    """Raise ConfigError unless files can be written into `run_dir`, which need not exist yet."""
    existing = existing_parent(run_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot write to run_dir={run_dir}: {existing}: {error.strerror}; set run_dir=FOLDER"
        ) from error


def check_same_run(config: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ConfigError where `run_dir` holds a run with other settings: continuing it would mix two experiments.

    How long and where a run goes on may change: what stands under `trainer` and `ray_kwargs`.
    """
    saved = run_dir / "config.yaml"
    if config["trainer"]["resume_mode"] != "auto" or not saved.is_file():
        return
    before, now = (dict(_leaves(tree)) for tree in (yaml.safe_load(saved.read_text()), config))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.split(".")[0] not in _MAY_CHANGE]
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in changed[:5])
        raise ConfigError(
            f"run_dir={run_dir} holds a run with other settings: {differences}; set run_dir=ANOTHER or delete it"
        )


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def check_resume(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError where the checkpoint to continue from is missing or lacks a part."""
    if trainer["resume_mode"] != "resume_path":
        return
    path = trainer["resume_from_path"]
    if not path or "global_step_" not in str(path):
        raise ConfigError(f"trainer.resume_from_path={path}: give a folder named global_step_N")
    for needed in ("actor", "data.pt"):
        if not (Path(path) / needed).exists():
            raise ConfigError(f"trainer.resume_from_path={path} is no complete checkpoint: it has no {needed}")
