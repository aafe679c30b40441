"""Write the output folder atomically: fill and lock a temporary folder next to it, and rename that when complete."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.files import flush

# A folder with one of these files is a model, which --force may replace.
MODEL_FILES = ("config.json", "adapter_config.json")

logger = logging.getLogger(__name__)


def check_output(output_dir: Path, *, force: bool = False, sources: tuple[Path, ...] = ()) -> None:
    """Raise ConfigError unless `output_dir` is new, empty, or (with `force`) a model folder without `sources`."""
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return
    if not output_dir.exists() and not output_dir.is_symlink():
        return
    given = f"the output {str(output_dir)!r}"
    if not output_dir.is_dir() or output_dir.is_symlink():
        raise ConfigError(f"{given} is not a folder: give a new folder, or remove it first")
    if not force:
        raise ConfigError(f"{given} is not empty: give a new folder, or replace it with --force")
    if held := [source for source in sources if source.resolve().is_relative_to(output_dir.resolve())]:
        raise ConfigError(f"{given} holds {str(held[0])!r}, which the export reads: give another folder")
    if not any((output_dir / name).is_file() for name in MODEL_FILES):
        raise ConfigError(f"{given} is not a model folder, and --force replaces only those: give another folder")


def check_space(output_dir: Path, num_bytes: int) -> None:
    """Raise ConfigError if the disk of `output_dir` has less than `num_bytes` free."""
    home = _existing_parent(output_dir.absolute())
    if num_bytes > (free := shutil.disk_usage(home).free):
        raise ConfigError(
            f"not enough disk space for the output, which needs {num_bytes / 1e9:.2f} GB, while {str(home)!r} has "
            f"{free / 1e9:.2f} GB: free some, give an output on another disk, or export with --dtype bf16"
        )


@contextmanager
def atomic_folder(output_dir: Path, *, force: bool = False) -> Iterator[Path]:
    """Write a folder atomically: it appears when the block ends, and not at all if the block raises.

    Files of an interrupted export to the same folder are removed first.

    Args:
        output_dir: A new or empty folder.
        force: Whether `output_dir` may be a model folder, which is replaced.

    Yields:
        A temporary folder to fill.

    Raises:
        ConfigError: `output_dir` is in use or can't be created, the disk is full, or another export to it is running.
    """
    output_dir = output_dir.absolute()
    # The temporary folder is on the output's file system, so that a rename suffices. Missing parents are created last.
    home = _existing_parent(output_dir)
    name = "-".join(output_dir.relative_to(home).parts)
    staging, replaced = home / f".{name}.partial", home / f".{name}.replaced"
    with _writing_to(home), _locked(staging):
        try:
            if left := list(staging.iterdir()):
                logger.warning("removing the files of an interrupted export in %s", staging)
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            # An export killed between the two renames below has left the old folder under the other name.
            if replaced.exists() and not output_dir.exists():
                replaced.rename(output_dir)
            shutil.rmtree(replaced, ignore_errors=True)
            check_output(output_dir, force=force)
            yield staging
            for path in (*staging.rglob("*"), staging):
                flush(path)
            check_output(output_dir, force=force)
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
            f"can't write to {str(home)!r} ({error.strerror or error}), so no output was written: free space there, or "
            "give another output"
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create `folder` if it is missing, and lock it. The kernel releases the lock when this process ends."""
    while True:
        folder.mkdir(exist_ok=True)
        # O_NOFOLLOW: through a link, the export would empty and fill another folder.
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(f"another export to this output is running in {str(folder)!r}: wait for it") from None
        # Another export may have renamed or removed the folder before this one locked it.
        if folder.exists() and folder.stat().st_ino == os.fstat(handle).st_ino:
            break
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


def _existing_parent(output_dir: Path) -> Path:
    return next(parent for parent in output_dir.parents if parent.exists())
