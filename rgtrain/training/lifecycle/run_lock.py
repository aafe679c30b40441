"""An exclusive lock on a run's folder: two runs that write into one folder would destroy each other's files."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError

FILE = ".lock"
_LOOK_EVERY_SECONDS = 0.2
# The holder writes who it is just after it has locked the file.
_UNNAMED_SECONDS = 5.0
_RUNNING, _STOPPING = "running", "stopping"


class RunLock:
    """A lock that this process holds, with a record of the holder in the file for whoever meets it."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%F %T%z")}
        self._write(_RUNNING)

    def mark_stopping(self) -> None:
        """Record that this process is about to end, so that the next start of the run waits for it."""
        self._write(_STOPPING)

    def _write(self, state: str) -> None:
        content = json.dumps({**self._holder, "state": state}).encode()
        # A full disk must not end the run: the lock itself needs no space.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content, 0)


@contextmanager
def locked_run(
    folder: Path, *, wait_s: float, say: Callable[[str], None], setting: str = "run_dir"
) -> Iterator[RunLock]:
    """Hold the lock on a folder of a run in this block. The kernel releases it however this process ends.

    Args:
        folder: The folder, which is made if it does not exist. Nothing but the lock file is written.
        wait_s: Seconds to wait if the run that holds the lock is stopping, as after a scheduler's requeue.
        say: Gets a line if there is something to wait for, and a warning if the file system has no locks.
        setting: The configuration's name of the folder, for messages.

    Yields:
        The lock.

    Raises:
        ConfigError: If another process holds the lock and keeps it.
    """
    deadline = time.monotonic() + wait_s
    unnamed_until = time.monotonic() + _UNNAMED_SECONDS
    is_waiting = False
    while (descriptor := _try_to_lock(folder, say, setting)) is None:
        holder = _holder_of(folder)
        now = time.monotonic()
        is_stopping = holder is not None and holder.get("state") == _STOPPING
        # A record of a process that is gone is of the holder before: this one has not written its own yet.
        is_known = holder is not None and not _is_gone(holder)
        if now > (deadline if is_stopping else unnamed_until) or (is_known and not is_stopping):
            advice = f"it did not stop within {wait_s:g} s: end it" if is_stopping else "wait for it, end it"
            raise ConfigError(f"{setting}={folder} is in use by {_words(holder)}; {advice}, or set {setting}=ANOTHER")
        if is_stopping and not is_waiting:
            is_waiting = True
            say(f"{_words(holder)} is stopping in {folder}; waiting for its end, up to {wait_s:g} s")
        time.sleep(_LOOK_EVERY_SECONDS)
    try:
        yield RunLock(descriptor)
    finally:
        _OPEN.discard(descriptor)
        os.close(descriptor)


def _try_to_lock(folder: Path, say: Callable[[str], None], setting: str) -> int | None:
    """Return the descriptor of the locked file, or None if another process has locked it."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Python's descriptors are closed on exec, so no program that is started inherits the lock.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write to {setting}={folder}: {error.strerror}; set {setting}=FOLDER") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        say(
            f"warning: the file system of {folder} has no locks ({error.strerror}): make sure that no second run is "
            "started in this folder"
        )
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            _OPEN.add(descriptor)
            return descriptor
    # The folder was deleted meanwhile, and perhaps made again: the lock is on a file that others do not see.
    os.close(descriptor)
    return _try_to_lock(folder, say, setting)


# A process that is forked would keep the lock after this one's end.
_OPEN: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _OPEN:
        os.close(descriptor)
    _OPEN.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _holder_of(folder: Path) -> Mapping[str, Any] | None:
    """Return the record in the lock file, or None if it is not complete."""
    try:
        holder = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, Mapping) else None


def _is_gone(holder: Mapping[str, Any]) -> bool:
    pid = holder.get("pid")
    return holder.get("host") == socket.gethostname() and not Path(f"/proc/{pid}").exists()


def _words(holder: Mapping[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, which started at {holder.get('started')}"
