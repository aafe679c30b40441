"""A folder that appears whole or not at all: filled beside its place, locked meanwhile, moved when complete."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.files import flush

# A folder with one of these is a model, which may be replaced by another.
MODEL_FILES = ("config.json", "adapter_config.json")

logger = logging.getLogger(__name__)


def check_free(output_dir: Path, *, force: bool = False, sources: tuple[Path, ...] = ()) -> None:
    """Raises ConfigError unless `output_dir` is new, empty, or with `force` a model's folder that holds no source."""
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return
    if not output_dir.exists() and not output_dir.is_symlink():
        return
    given = f"the output {str(output_dir)!r}"
    if not output_dir.is_dir() or output_dir.is_symlink():
        raise ConfigError(f"{given} is no folder: name a new folder, or remove it first")
    if not force:
        raise ConfigError(f"{given} is not empty: name a new folder, or replace it with --force")
    if held := [source for source in sources if source.resolve().is_relative_to(output_dir.resolve())]:
        raise ConfigError(f"{given} holds {str(held[0])!r}, which the export reads: name another folder")
    if not any((output_dir / name).is_file() for name in MODEL_FILES):
        raise ConfigError(f"{given} is no model's folder, and --force replaces nothing else: name another folder")


def check_space(output_dir: Path, num_bytes: int) -> None:
    """Raises ConfigError where fewer than `num_bytes` are free where `output_dir` will be."""
    home = _existing_parent(output_dir.absolute())
    if num_bytes > (free := shutil.disk_usage(home).free):
        raise ConfigError(
            f"no space left for the output: it takes {num_bytes / 1e9:.2f} GB, and {str(home)!r} has "
            f"{free / 1e9:.2f} GB: free some, name an output on another disk, or export as --dtype bf16"
        )


@contextmanager
def complete_folder(output_dir: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `output_dir` once the block ends without an error, and else is removed.

    What a killed export left is removed first. Raises ConfigError where `output_dir` can't be made, another export to
    it is under way, the disk is full, or (unless `force`) it is in use.
    """
    output_dir = output_dir.absolute()
    # On the output's file system, so that one rename moves it; missing parents are made only once it is complete.
    home = _existing_parent(output_dir)
    name = "-".join(output_dir.relative_to(home).parts)
    staging, replaced = home / f".{name}.partial", home / f".{name}.replaced"
    with _writing_to(home), _locked(staging):
        try:
            if left := list(staging.iterdir()):
                logger.warning("removing what an interrupted export left in %s", staging)
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            # A kill between the two renames below left the old folder beside its place.
            if replaced.exists() and not output_dir.exists():
                replaced.rename(output_dir)
            shutil.rmtree(replaced, ignore_errors=True)
            check_free(output_dir, force=force)
            yield staging
            for path in (*staging.rglob("*"), staging):
                flush(path)
            check_free(output_dir, force=force)
            output_dir.parent.mkdir(parents=True, exist_ok=True)
            if output_dir.exists() and any(output_dir.iterdir()):
                output_dir.rename(replaced)
            staging.rename(output_dir)
            flush(output_dir.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def _writing_to(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"can't write to {str(home)!r} ({error.strerror or error}): free space there or name another output; "
            "nothing was left behind"
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds `folder`, made if need be, against other exports; the kernel lets go of it when this process ends."""
    while True:
        folder.mkdir(exist_ok=True)
        # A link of this name would have the export empty and fill another folder.
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(f"another export to this output is under way in {str(folder)!r}: wait for it") from None
        # Another export may have finished with the folder, or removed it, before it was locked.
        if folder.exists() and folder.stat().st_ino == os.fstat(handle).st_ino:
            break
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


def _existing_parent(output_dir: Path) -> Path:
    return next(parent for parent in output_dir.parents if parent.exists())
