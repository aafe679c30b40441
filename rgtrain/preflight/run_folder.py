"""Check that a run's folder is writable and that a run in it has the same settings."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rgtrain.checkpoints.checkpoint_store import MANIFEST, problems
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.preflight.disk import existing_parent
from rgtrain.provenance import masked_values

_MAY_CHANGE = ("trainer", "ray_kwargs", "run_dir", "preflight")


def check_run_folder(config: RunConfig) -> None:
    """Check that the run can write its folders and can resume from the files in them.

    Raises:
        ConfigError: A folder can't be written, or the run can't be resumed. The message names the folder or file.
    """
    check_run_dir(config.run_dir)
    if config.trainer.save_freq > 0:
        check_run_dir(config.trainer.default_local_dir, key="trainer.default_local_dir")
    if config.trainer.resume_mode == "auto":
        # launch.py saves the configuration with masked secrets, so a changed secret is no difference between runs.
        check_same_run(masked_values(config.whole), config.run_dir)
    if config.trainer.resume_mode == "resume_path":
        check_resume(config.trainer.resume_from_path)


def check_run_dir(run_dir: Path, *, key: str = "run_dir") -> None:
    """Check that files can be written into `run_dir`, which need not exist yet.

    Args:
        run_dir: The folder.
        key: The configuration key that names the folder, for messages.

    Raises:
        ConfigError: The folder can't be written, or its path contains a broken link.
    """
    for folder in (run_dir.absolute(), *run_dir.absolute().parents):
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"{key}={run_dir} can't be used, because {folder} is a link to {folder.readlink()}, which does not "
                "exist; mount that disk or remove the link"
            )
    existing = existing_parent(run_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot write to {key}={run_dir} ({error.strerror} in {existing}); set {key}=FOLDER"
        ) from error


def check_same_run(config: Mapping[str, Any], run_dir: Path) -> None:
    """Check that a run in `run_dir` has the same settings, because resuming it otherwise would mix two experiments.

    Keys under `trainer` and `ray_kwargs` may differ, because the length of a run and the machine may change.

    Raises:
        ConfigError: Other settings differ, or the saved configuration is damaged.
    """
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        return
    before, now = (dict(_leaves(tree)) for tree in (_read_config(saved, config), config))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.split(".")[0] not in _MAY_CHANGE]
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in changed[:5])
        raise ConfigError(
            f"run_dir={run_dir} holds a run with other settings: {differences}. "
            "Set another run_dir, or delete the folder"
        )


def _read_config(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the configuration that an earlier start saved to `path`; raise ConfigError if it is damaged."""
    try:
        saved = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        # A truncated file may still be valid YAML.
        missing = sorted(config.keys() - saved.keys()) if isinstance(saved, Mapping) else sorted(config)
        if not missing:
            return saved
        reason = f"it has no {', '.join(missing[:3])}"
    raise ConfigError(
        f"{str(path)!r} is damaged ({reason}), so the settings of the run there are unknown; restore it from a copy or "
        "set another run_dir, or, if this command has the same settings, delete the file and the run will resume"
    )


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def check_resume(resume_from_path: str | None) -> None:
    """Raise ConfigError if the checkpoint named by `trainer.resume_from_path` is missing, incomplete or damaged."""
    given = f"trainer.resume_from_path={resume_from_path}"
    path = Path(resume_from_path or ".")
    if not re.fullmatch(r"global_step_[0-9]+", path.name):
        raise ConfigError(f"{given} is not a checkpoint; give a folder named global_step_N")
    for needed in ("actor", "data.pt"):
        if not (path / needed).exists():
            raise ConfigError(
                f"{given} is not a complete checkpoint, because {needed} is missing; give another checkpoint"
            )
    # A checkpoint written by another program has no manifest.
    if (path / MANIFEST).exists() and (wrong := problems(path)):
        raise ConfigError(f"{given} is damaged ({', '.join(wrong[:3])}); restore it or give another checkpoint")
