"""One complete sharded model: which files make it up, and that none is missing or of another checkpoint."""

import itertools
import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rgtrain.checkpoints.untrusted_files import open_regular, read_json_object
from rgtrain.errors import ConfigError

RANK_FILE = re.compile(r"model_world_size_([1-9][0-9]{0,9})_rank_(0|[1-9][0-9]{0,9})\.pt")
STEP_FOLDER = re.compile(r"global_step_([0-9]+)")
_MOST_FSDP_CONFIG_BYTES = 64 * 1024


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
        matches = (STEP_FOLDER.fullmatch(folder.name) for folder in self.folders_above(most=2))
        return next((int(match[1]) for match in matches if match), None)

    def folders_above(self, *, most: int) -> list[Path]:
        """The folder and those above it, `most` of them: as the user named it, then where links lead to."""
        named = Path(os.path.abspath(self.folder))  # noqa: PTH100 (resolve() would follow links)
        ways = [(way, *way.parents)[:most] for way in (named, self.folder.resolve())]
        return list(dict.fromkeys(itertools.chain(*ways)))

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
        raise ConfigError(
            f"{str(folder)!r} mixes rank files of world sizes {_listed(sorted(found), len(found))}{which}"
        )
    ((world_size, by_rank),) = found.items()
    if recorded not in (None, world_size):
        raise ConfigError(
            f"{str(folder)!r} has rank files of world size {world_size}, but its fsdp_config.json says {recorded}: "
            "the folder holds files of two checkpoints"
        )
    if odd := sorted(rank for rank in by_rank if rank >= world_size):
        raise ConfigError(
            f"{str(folder)!r} has {by_rank[odd[0]].name}, but the ranks of {world_size} end at {world_size - 1}: "
            "remove it, or export another step"
        )
    # The world size is only a number in a file's name: nothing is made of that length before the files are there.
    if num_missing := world_size - len(by_rank):
        missing = (rank for rank in range(world_size) if rank not in by_rank)
        names = (f"model_world_size_{world_size}_rank_{rank}.pt" for rank in missing)
        raise ConfigError(
            f"{str(folder)!r} lacks {num_missing} of {world_size} rank files: {_listed(names, num_missing)}. "
            "Copy them from the machines that wrote them, or export another step"
        )
    files = tuple(by_rank[rank] for rank in range(world_size))
    # The table of contents stands at the end of the file, so this sees a save that was cut short without reading it.
    if broken := [path.name for path in files if not _is_torch_file(path)]:
        raise ConfigError(
            f"{str(folder)!r} has rank files that were cut short or aren't torch files: "
            f"{_listed(broken, len(broken))}. Copy them again, or export another step"
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


def _is_torch_file(path: Path) -> bool:
    with open_regular(path) as file:
        # Without this mark at the start, torch would read the file in the format that it used before zip files.
        return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(file)


def _recorded_world_size(folder: Path) -> int | None:
    path = folder / "fsdp_config.json"
    try:
        recorded = read_json_object(path, most_bytes=_MOST_FSDP_CONFIG_BYTES).get("world_size")
    except FileNotFoundError:
        return None
    if type(recorded) is not int or not 1 <= recorded < 2**31:
        raise ConfigError(f"{str(path)!r} has no world_size that is a number of ranks: restore or delete it")
    return recorded


def _listed(items: Iterable[object], count: int, *, most: int = 8) -> str:
    more = f" and {count - most} more" if count > most else ""
    return ", ".join(map(str, itertools.islice(items, most))) + more
