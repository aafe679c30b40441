"""Check the folder of a run: it must be writable, and a run that it holds must have the same settings."""

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
    """Check that the run can write its folders and can resume from the files there.

    Raises:
        ConfigError: It cannot. The message names the folder or file and the fix.
    """
    check_run_dir(config.run_dir)
    if config.trainer.save_freq > 0:
        check_run_dir(config.trainer.default_local_dir, key="trainer.default_local_dir")
    if config.trainer.resume_mode == "auto":
        # As launch.py saves them: a secret is no difference between two runs.
        check_same_run(masked_values(config.whole), config.run_dir)
    if config.trainer.resume_mode == "resume_path":
        check_resume(config.trainer.resume_from_path)


def check_run_dir(run_dir: Path, *, key: str = "run_dir") -> None:
    """Raise ConfigError unless files can be written into `run_dir`, the value of `key`. It need not exist yet."""
    for folder in (run_dir.absolute(), *run_dir.absolute().parents):
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"{key}={run_dir}: {folder} is a link to {folder.readlink()}, which does not exist: mount that disk, "
                "or remove the link"
            )
    existing = existing_parent(run_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise ConfigError(f"cannot write to {key}={run_dir}: {existing}: {error.strerror}; set {key}=FOLDER") from error


def check_same_run(config: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ConfigError if `run_dir` holds a run with other settings, because continuing it would mix two experiments.

    The length of a run and the machine may change: all keys under `trainer` and `ray_kwargs`.
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
            f"run_dir={run_dir} holds a run with other settings: {differences}; set run_dir=ANOTHER or delete it"
        )


def _read_config(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the configuration that an earlier start saved to `path`. Raise ConfigError if it is damaged."""
    try:
        saved = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        # All that was written up to a cut may be valid YAML.
        missing = sorted(config.keys() - saved.keys()) if isinstance(saved, Mapping) else sorted(config)
        if not missing:
            return saved
        reason = f"it has no {', '.join(missing[:3])}"
    raise ConfigError(
        f"{str(path)!r} is damaged ({reason}), so the settings of the run there are unknown: restore it from a copy, "
        "set another run_dir, or, if this command has the same settings, delete the file: the run then continues"
    )


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def check_resume(resume_from_path: str | None) -> None:
    """Raise ConfigError if the checkpoint that `trainer.resume_from_path` names is missing, incomplete or damaged."""
    given = f"trainer.resume_from_path={resume_from_path}"
    path = Path(resume_from_path or ".")
    if not re.fullmatch(r"global_step_[0-9]+", path.name):
        raise ConfigError(f"{given}: give a folder named global_step_N")
    for needed in ("actor", "data.pt"):
        if not (path / needed).exists():
            raise ConfigError(f"{given} is no complete checkpoint: it has no {needed}")
    # Another program writes no manifest.
    if (path / MANIFEST).exists() and (wrong := problems(path)):
        raise ConfigError(f"{given} is damaged: {'; '.join(wrong[:3])}: restore it, or give another checkpoint")
