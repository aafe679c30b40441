"""Find the files of a sharded model, and check that none is missing or belongs to another checkpoint."""

import itertools
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.untrusted_files import open_regular, read_json_object
from rgtrain.errors import ConfigError

RANK_FILE = re.compile(r"model_world_size_([1-9][0-9]{0,9})_rank_(0|[1-9][0-9]{0,9})\.pt")
STEP_FOLDER = re.compile(r"global_step_([0-9]+)")
_FSDP_CONFIG = "fsdp_config.json"
_MAX_FSDP_CONFIG_BYTES = 64 * 1024


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder in a checkpoint. `rank_files[r]` is the file of rank r; a Megatron checkpoint has none."""

    folder: Path
    rank_files: tuple[Path, ...] = ()

    @property
    def is_megatron(self) -> bool:
        """Whether Megatron wrote the checkpoint."""
        return not self.rank_files

    @property
    def hugging_face_folder(self) -> Path:
        """The folder to which verl saves the config and tokenizer. It may be missing."""
        return self.folder / "model" / "huggingface" if self.is_megatron else self.folder / "huggingface"

    @property
    def step(self) -> int | None:
        """The step N, if the folder or its parent is called `global_step_N`."""
        matches = (STEP_FOLDER.fullmatch(folder.name) for folder in self.folders_above(max_levels=2))
        return next((int(match[1]) for match in matches if match), None)

    def folders_above(self, *, max_levels: int) -> list[Path]:
        """Return the folder and its parents, `max_levels` in all: of the path as given, then with links resolved."""
        named = Path(os.path.abspath(self.folder))  # noqa: PTH100 (resolve() would follow links)
        chains = [(path, *path.parents)[:max_levels] for path in (named, self.folder.resolve())]
        return list(dict.fromkeys(itertools.chain(*chains)))

    @property
    def label(self) -> str:
        """The last two parts of the folder's path, such as `global_step_300/actor`."""
        return "/".join(self.folder.resolve().parts[-2:])


def is_model_folder(folder: Path) -> bool:
    """Return whether `folder` itself holds a sharded model, complete or not."""
    return bool(_rank_files(folder)) or _holds_megatron(folder)


def complete_checkpoint(folder: Path) -> Checkpoint:
    """Return the sharded model in `folder`. Raise ConfigError if files are missing, truncated or mixed."""
    if not (found := _rank_files(folder)):
        return Checkpoint(folder)
    recorded = _recorded_world_size(folder)
    if len(found) > 1:
        fix = f"keep those of {recorded}, as recorded in fsdp_config.json" if recorded in found else "keep one of them"
        raise ConfigError(
            f"{str(folder)!r} mixes rank files of world sizes {_listed(sorted(found), len(found))}: {fix}"
        )
    ((world_size, by_rank),) = found.items()
    if recorded not in (None, world_size):
        raise ConfigError(
            f"{str(folder)!r} has rank files of world size {world_size}, but its fsdp_config.json says {recorded}: "
            "restore the files of one checkpoint"
        )
    if odd := sorted(rank for rank in by_rank if rank >= world_size):
        raise ConfigError(
            f"{str(folder)!r} has {by_rank[odd[0]].name}, but the highest rank is {world_size - 1}: remove that file, "
            "or use another step"
        )
    # The world size is an unchecked number in a file name, so use lazy sequences until all files are found.
    if num_missing := world_size - len(by_rank):
        missing = (rank for rank in range(world_size) if rank not in by_rank)
        names = (f"model_world_size_{world_size}_rank_{rank}.pt" for rank in missing)
        raise ConfigError(
            f"{str(folder)!r} lacks {num_missing} of {world_size} rank files: {_listed(names, num_missing)}. "
            "Copy them from the machines that saved them, or use another step"
        )
    files = tuple(by_rank[rank] for rank in range(world_size))
    # The table of contents is at the end of the file, so this detects a truncated file without reading all of it.
    if broken := [path.name for path in files if not _is_torch_file(path)]:
        raise ConfigError(
            f"{str(folder)!r} has rank files that are truncated or aren't torch files: "
            f"{_listed(broken, len(broken))}. Copy them again, or use another step"
        )
    return Checkpoint(folder, files)


@dataclass(frozen=True)
class SavedBy:
    """The ranks that saved a sharded model: their number, and whether FSDP1 divided it among them."""

    world_size: int
    is_fsdp1: bool


def saved_by(folder: Path) -> SavedBy | None:
    """Return the ranks that saved the model in `folder`, by its file names and fsdp_config.json.

    Args:
        folder: A model's folder in a checkpoint. Its files need not be complete.

    Returns:
        The ranks, or None if there are no rank files or those of several numbers of ranks.

    Raises:
        ConfigError: fsdp_config.json is damaged.
    """
    world_sizes = list(_rank_files(folder))
    if len(world_sizes) != 1:
        return None
    return SavedBy(world_sizes[0], is_fsdp1=(_fsdp_config(folder) or {}).get("FSDP_version") == 1)


def files_beside(model_files: tuple[Path, ...], kind: str) -> tuple[Path, ...]:
    """Return the files of all ranks that verl saves beside those of the model.

    Args:
        model_files: The files of the model.
        kind: The start of the names, `optim` or `extra_state`.

    Returns:
        One file per rank.

    Raises:
        ConfigError: A file is missing or truncated.
    """
    files = tuple(path.with_name(path.name.replace("model", kind, 1)) for path in model_files)
    if unusable := [path.name for path in files if not path.is_file() or not _is_torch_file(path)]:
        raise ConfigError(
            f"{str(files[0].parent)!r} has no complete {_listed(unusable, len(unusable))}. Copy all files from the "
            "machines that saved them, or use another step"
        )
    return files


def _rank_files(folder: Path) -> dict[int, dict[int, Path]]:
    """Return the rank files in `folder` by world size and rank."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("model_world_size_*.pt"):
        if match := RANK_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    return found


def _holds_megatron(folder: Path) -> bool:
    # verl writes ckpt_contents.json last. Its first layout has dist_ckpt/ in the folder itself.
    return any((folder / name).exists() for name in ("ckpt_contents.json", "model/dist_ckpt", "dist_ckpt"))


def _is_torch_file(path: Path) -> bool:
    with open_regular(path) as file:
        # Without this signature, torch would read the file in its old format, which is not a zip file.
        return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(file)


def _recorded_world_size(folder: Path) -> int | None:
    if (config := _fsdp_config(folder)) is None:
        return None
    recorded = config.get("world_size")
    if type(recorded) is not int or not 1 <= recorded < 2**31:
        raise ConfigError(f"{str(folder / _FSDP_CONFIG)!r} has no valid world_size: restore or delete it")
    return recorded


def _fsdp_config(folder: Path) -> Mapping[str, Any] | None:
    """Return verl's record of how FSDP divided the model, or None if there is none."""
    try:
        return read_json_object(folder / _FSDP_CONFIG, max_bytes=_MAX_FSDP_CONFIG_BYTES)
    except FileNotFoundError:
        return None


def _listed(items: Iterable[object], count: int, *, max_items: int = 8) -> str:
    more = f" and {count - max_items} more" if count > max_items else ""
    return ", ".join(map(str, itertools.islice(items, max_items))) + more
