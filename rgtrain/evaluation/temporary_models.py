"""Temporary folders for exported models, which do not outlive the process that needs them, even if it is killed."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.machine.orphan_cleanup import remove_with_run

PREFIX = "rgtrain-model-"
_OWNER = "owner.pid"


@contextmanager
def temporary_model_folder(*, num_bytes: int) -> Iterator[Path]:
    """Create a folder for an exported model, and remove those whose processes have ended.

    The process holds a lock on a file with its id in the folder. The kernel releases the lock when the process ends.

    Args:
        num_bytes: The approximate size of the model.

    Yields:
        The folder, which is removed at the end of the block. If the process is killed, the run's clean-up process
        removes it, or else the next process that calls this.

    Raises:
        ConfigError: The disk has too little space.
    """
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent)
    if num_bytes > (free := shutil.disk_usage(parent).free):
        raise ConfigError(
            f"the evaluation needs a temporary copy of the model of about {num_bytes / 1e9:.2f} GB, but "
            f"{str(parent)!r} has {free / 1e9:.2f} GB free: set TMPDIR to a folder on another disk, or export the "
            "checkpoint and evaluate the exported model"
        )
    new = Path(tempfile.mkdtemp(prefix=".rgtrain-new-", dir=parent))
    folder = parent / f"{PREFIX}{new.name.rpartition('-')[2]}"
    with (new / _OWNER).open("w") as owner:
        owner.write(f"{os.getpid()}\n")
        owner.flush()
        fcntl.flock(owner, fcntl.LOCK_EX)
        # Under its name, the folder is never seen without its lock.
        new.rename(folder)
        try:
            remove_with_run(folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the model folders of this user in `parent` whose processes have ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            handle = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            # A process was killed while it removed its folder, or removes it now.
            shutil.rmtree(folder, ignore_errors=True)
            continue
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            # Its process is running.
            pass
        finally:
            os.close(handle)
