"""One complete sharded model: which files make it up, and that none is missing or of another checkpoint."""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rgtrain.errors import ConfigError

RANK_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
STEP_FOLDER = re.compile(r"global_step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder in a checkpoint: `rank_files[r]` is what rank r saved; Megatron's has none."""

    folder: Path
    rank_files: tuple[Path, ...] = ()

    @property
    def is_megatron(self) -> bool:
        return not self.rank_files

    @property
    def hugging_face_folder(self) -> Path:
        """Where verl saves the config and tokenizer (it may be missing)."""
        return self.folder / "model" / "huggingface" if self.is_megatron else self.folder / "huggingface"

    @property
    def step(self) -> int | None:
        """N of the `global_step_N` that the folder is or lies in."""
        resolved = self.folder.resolve()
        matches = (STEP_FOLDER.fullmatch(name) for name in (resolved.name, resolved.parent.name))
        return next((int(match[1]) for match in matches if match), None)

    @property
    def label(self) -> str:
        """The folder's last two names: `global_step_300/actor`."""
        return "/".join(self.folder.resolve().parts[-2:])


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` itself holds a sharded model, complete or not."""
    return bool(_rank_files(folder)) or _holds_megatron(folder)


def complete_checkpoint(folder: Path) -> Checkpoint:
    """The sharded model in `folder`. Raises ConfigError where files are missing, cut short or mixed."""
    if not (found := _rank_files(folder)):
        return Checkpoint(folder)
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
    return Checkpoint(folder, files)


def _rank_files(folder: Path) -> dict[int, dict[int, Path]]:
    """World size -> rank -> file."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("model_world_size_*.pt"):
        if match := RANK_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    return found


def _holds_megatron(folder: Path) -> bool:
    # verl writes ckpt_contents.json last; before its second layout dist_ckpt/ stood in the folder itself.
    return any((folder / name).exists() for name in ("ckpt_contents.json", "model/dist_ckpt", "dist_ckpt"))


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
