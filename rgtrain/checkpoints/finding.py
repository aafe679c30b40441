"""Which rank files make up a checkpoint, found from whatever folder of a run the user names."""

import json
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rgtrain.errors import ConfigError

RANK_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
STEP_FOLDER = re.compile(r"global_step_(\d+)")
TRACKER = "latest_checkpointed_iteration.txt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardFolder:
    """One complete sharded model: `rank_files[r]` is what rank r saved."""

    folder: Path
    rank_files: tuple[Path, ...]

    @property
    def hugging_face_folder(self) -> Path:
        """Where verl saves the config and tokenizer beside the shards (it may be missing)."""
        return self.folder / "huggingface"


def find_shards(checkpoint_dir: Path) -> ShardFolder:
    """The shards in a folder of rank files, in a `global_step_N`, or in a folder of steps.

    A folder of steps (or a run's folder with `checkpoints/`) yields the step that verl's tracker file names. Where
    there is no tracker or its step is incomplete, it is the highest complete step, and a warning says what was passed
    over.

    Raises ConfigError where there is no complete checkpoint, naming what each candidate lacks.
    """
    if not checkpoint_dir.is_dir():
        raise ConfigError(
            f"there is no checkpoint folder {str(checkpoint_dir)!r}: give a global_step_N folder or the run's folder"
        )
    for folder in (checkpoint_dir, checkpoint_dir / "actor"):
        if _rank_files(folder):
            return _complete(folder)
    if STEP_FOLDER.fullmatch(checkpoint_dir.resolve().name):
        raise ConfigError(f"{str(checkpoint_dir)!r} has no model_world_size_W_rank_R.pt in it or in its actor/ folder")
    for root in (checkpoint_dir, checkpoint_dir / "checkpoints"):
        if steps := _steps(root):
            return _last_complete(root, steps)
    raise ConfigError(
        f"there is no sharded checkpoint in {str(checkpoint_dir)!r}: expected model_world_size_W_rank_R.pt files in it "
        "or in its actor/ folder, or global_step_N folders in it or in its checkpoints/ folder"
    )


def _last_complete(root: Path, steps: dict[int, Path]) -> ShardFolder:
    tracked = _tracked_step(root)
    problems = []
    if tracked is not None and tracked not in steps:
        problems.append(f"{TRACKER} names step {tracked}, which is not there")
    for step in sorted(steps, key=lambda step: (step == tracked, step), reverse=True):
        try:
            found = find_shards(steps[step])
        except ConfigError as error:
            problems.append(str(error))
        else:
            if problems:
                logger.warning("taking global_step_%d: %s", step, "; ".join(problems))
            return found
    raise ConfigError(f"no step in {str(root)!r} is complete: {'; '.join(problems)}")


def _steps(root: Path) -> dict[int, Path]:
    if not root.is_dir():
        return {}
    matches = ((STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _tracked_step(root: Path) -> int | None:
    try:
        return int((root / TRACKER).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(
            f"{str(root / TRACKER)!r} holds no step number: name a global_step_N folder instead"
        ) from None


def _rank_files(folder: Path) -> dict[int, dict[int, Path]]:
    """World size -> rank -> file."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("model_world_size_*.pt"):
        if match := RANK_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    return found


def _complete(folder: Path) -> ShardFolder:
    found = _rank_files(folder)
    recorded = _recorded_world_size(folder)
    if len(found) > 1:
        which = f"; its fsdp_config.json says {recorded}: remove the others" if recorded in found else ""
        raise ConfigError(f"{str(folder)!r} mixes rank files of world sizes {_listed(sorted(found))}{which}")
    ((world_size, by_rank),) = found.items()
    if recorded not in (None, world_size):
        raise ConfigError(
            f"{str(folder)!r} has rank files of world size {world_size}, but its fsdp_config.json says {recorded}: "
            "the folder holds files of two checkpoints"
        )
    if missing := [rank for rank in range(world_size) if rank not in by_rank]:
        names = [f"model_world_size_{world_size}_rank_{rank}.pt" for rank in missing]
        raise ConfigError(
            f"{str(folder)!r} lacks {len(missing)} of {world_size} rank files: {_listed(names)}. "
            "Copy them from the machines that wrote them, or export another step"
        )
    files = tuple(by_rank[rank] for rank in range(world_size))
    # The table of contents stands at the end of the file, so this sees a save that was cut short without reading it.
    if broken := [path.name for path in files if not zipfile.is_zipfile(path)]:
        raise ConfigError(
            f"{str(folder)!r} has rank files that were cut short or aren't torch files: {_listed(broken)}. "
            "Copy them again, or export another step"
        )
    return ShardFolder(folder=folder, rank_files=files)


def _recorded_world_size(folder: Path) -> int | None:
    path = folder / "fsdp_config.json"
    try:
        return json.loads(path.read_text())["world_size"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{str(path)!r} is no JSON object with a world_size: restore or delete it") from None


def _listed(items: list, *, most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
