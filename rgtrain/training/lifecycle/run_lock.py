"""Lock a run's folder, because two runs that write into one folder would destroy each other's files."""

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
# The holder writes its record just after it has locked the file. Wait this long for it.
_UNNAMED_SECONDS = 5.0
_RUNNING, _STOPPING = "running", "stopping"


class RunLock:
    """A lock that this process holds. The lock file names the holder for other processes.

    Args:
        descriptor: The open descriptor of the locked file.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%F %T%z")}
        self._write(_RUNNING)

    def mark_stopping(self) -> None:
        """Record that this process is about to end, so that the next start of the run waits for it."""
        self._write(_STOPPING)

    def _write(self, state: str) -> None:
        content = json.dumps({**self._holder, "state": state}).encode()
        # A full disk must not end the run, because the lock itself needs no space.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content, 0)


@contextmanager
def locked_run(
    folder: Path, *, wait_s: float, say: Callable[[str], None], setting: str = "run_dir"
) -> Iterator[RunLock]:
    """Hold the lock on a folder of a run in this block. The kernel releases it however this process ends.

    Args:
        folder: The folder, which is created if necessary. Only the lock file is written.
        wait_s: Seconds to wait if the run that holds the lock is stopping, for example after a scheduler's requeue.
        say: Called with a line if the lock must be waited for, and with a warning if the file system has no locks.
        setting: The configuration key of the folder, for messages.

    Yields:
        The lock.

    Raises:
        ConfigError: Another process holds the lock and does not release it, or the folder cannot be written.
    """
    deadline = time.monotonic() + wait_s
    unnamed_until = time.monotonic() + _UNNAMED_SECONDS
    is_waiting = False
    while (descriptor := _try_to_lock(folder, say, setting)) is None:
        holder = _holder_of(folder)
        now = time.monotonic()
        is_stopping = holder is not None and holder.get("state") == _STOPPING
        # If the recorded process is gone, the record is of an earlier holder. The present one has not written its own.
        is_known = holder is not None and not _is_gone(holder)
        if now > (deadline if is_stopping else unnamed_until) or (is_known and not is_stopping):
            problem = f", and it did not stop within {wait_s:g} s" if is_stopping else ""
            advice = "end it" if is_stopping else "wait for it, end it"
            raise ConfigError(
                f"{setting}={folder} is in use by {_describe(holder)}{problem}; {advice}, or set {setting}=ANOTHER"
            )
        if is_stopping and not is_waiting:
            is_waiting = True
            say(f"{_describe(holder)} is stopping in {folder}; waiting for its end, up to {wait_s:g} s")
        time.sleep(_LOOK_EVERY_SECONDS)
    try:
        yield RunLock(descriptor)
    finally:
        _held_descriptors.discard(descriptor)
        os.close(descriptor)


def _try_to_lock(folder: Path, say: Callable[[str], None], setting: str) -> int | None:
    """Return the descriptor of the locked file, or None if another process has locked it."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Python closes its descriptors on exec, so programs that this process starts do not inherit the lock.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write to {setting}={folder} ({error.strerror}); set {setting}=FOLDER") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        say(
            f"warning: the file system of {folder} has no locks ({error.strerror}); do not start a second run in this "
            "folder"
        )
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            _held_descriptors.add(descriptor)
            return descriptor
    # The folder was deleted in the meantime, so the locked file is not the one that other processes see.
    os.close(descriptor)
    return _try_to_lock(folder, say, setting)


# Closed in forked children, which would otherwise keep the lock after this process has ended.
_held_descriptors: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held_descriptors:
        os.close(descriptor)
    _held_descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _holder_of(folder: Path) -> Mapping[str, Any] | None:
    """Return the record in the lock file, or None if it is missing or incomplete."""
    try:
        holder = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, Mapping) else None


def _is_gone(holder: Mapping[str, Any]) -> bool:
    pid = holder.get("pid")
    return holder.get("host") == socket.gethostname() and not Path(f"/proc/{pid}").exists()


def _describe(holder: Mapping[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, which started at {holder.get('started')}"
