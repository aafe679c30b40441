"""Remove the processes and temporary files that a run leaves behind, even after SIGKILL.

A clean-up process that outlives the run does it. Its program is this file, which therefore imports only Python's
standard library.
"""

import atexit
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# The environment variable that identifies the processes of a run: each process inherits it from its parent.
RUN_ID = "RGTRAIN_RUN_ID"
# The environment variable with the run's temporary folder, for all of its processes on this machine.
FOLDER = "RGTRAIN_TEMPORARY_FOLDER"
# A socket's path has at most 107 bytes. After the parent of the run's folder, Ray needs up to 82 of them, as in
# rg_abcdefgh/r/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store. After TMPDIR, Python's multiprocessing
# needs 32.
_MAX_PARENT_BYTES, _MAX_TMPDIR_BYTES = 25, 75
# In order of preference. /dev/shm is last because it is memory, and XDG_RUNTIME_DIR is removed when its user logs out.
_SHORT_PARENTS = ("/tmp", "/var/tmp", "/dev/shm")
_MIN_FREE_BYTES = 1 << 30
_SHARED_MEMORY = Path("/dev/shm")
_POLL_SECONDS = 0.5
# Links in the run's temporary folder, by this prefix, lead to other folders to remove.
_LINK_PREFIX = "remove-"
# The time for processes that clean up themselves after their parent's end, as Python's resource tracker does.
_GRACE_SECONDS = 3
# A process that survives SIGKILL for this time is stuck waiting for a device.
_MAX_WAIT_SECONDS = 60


def clean_up_after_this_process() -> Path:
    """Start a clean-up process, which kills this run's processes and removes its files after this process ends.

    Call it before starting any other process. If TMPDIR is too long for sockets, this process and those that it starts
    use the returned folder instead.

    Returns:
        A new private folder for the run's temporary files, which is removed too (see `private_folder`).
    """
    os.environ[RUN_ID] = uuid.uuid4().hex
    folder = _make_folder()
    os.environ[FOLDER] = str(folder)
    # vLLM creates its sockets here.
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
    if len(os.fsencode(tempfile.gettempdir())) > _MAX_TMPDIR_BYTES:
        os.environ["TMPDIR"] = str(folder)
        # Clear Python's cached value of TMPDIR.
        tempfile.tempdir = None
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as segment_list:
        with os.fdopen(reading, "rb") as stdin:
            subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(folder)],
                cwd="/",
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Signals to the run's process group, or from its terminal, must not reach the clean-up process.
                start_new_session=True,
            )
        segment_list.write("\n".join(map(str, _segments())).encode())
    return folder


def private_folder() -> Path:
    """Return this run's temporary folder, whose path is short enough for sockets in it.

    Returns:
        A folder on this machine with mode 0700, removed at the end of the run. A process that does not belong to a run
        gets its own folder, removed at the end of the process.
    """
    # On another machine, the inherited name may be of a folder that does not exist or that belongs to another user.
    if not _is_private(os.environ.get(FOLDER, "")):
        folder = _make_folder()
        os.environ[FOLDER] = str(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(os.environ[FOLDER])


def remove_with_run(path: Path) -> None:
    """Let the clean-up process also remove the folder `path`, which is not in the run's temporary folder.

    A no-op in a process without a clean-up process.

    Args:
        path: The folder, on this machine.
    """
    if _is_private(os.environ.get(FOLDER, "")):
        (Path(os.environ[FOLDER]) / f"{_LINK_PREFIX}{uuid.uuid4().hex}").symlink_to(path.absolute())


def _is_private(folder: str) -> bool:
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def short_parent() -> Path:
    """Return the parent for a run's temporary folder: TMPDIR, or another folder if TMPDIR is too long for sockets.

    Returns:
        The first writable folder with 1 GiB of free space, or the one with the most free space.
    """
    parents = dict.fromkeys([tempfile.gettempdir(), *_SHORT_PARENTS])
    usable = [
        parent
        for parent in parents
        if len(os.fsencode(parent)) <= _MAX_PARENT_BYTES and os.access(parent, os.W_OK | os.X_OK)
    ]
    if not usable:
        sys.exit(
            f"error: no writable folder has a path short enough for sockets (TMPDIR is {tempfile.gettempdir()}); "
            f"set TMPDIR to a writable folder whose path has at most {_MAX_PARENT_BYTES} bytes"
        )
    roomy = [parent for parent in usable if shutil.disk_usage(parent).free > _MIN_FREE_BYTES]
    return Path(roomy[0] if roomy else max(usable, key=lambda parent: shutil.disk_usage(parent).free))


def _make_folder() -> Path:
    # mkdtemp creates it with mode 0700.
    return Path(tempfile.mkdtemp(prefix="rg_", dir=short_parent()))


def processes_of(run_id: str) -> Iterator[int]:
    """Yield the ids of the processes that inherited `run_id`, except this one and those that have ended."""
    mark = f"{RUN_ID}={run_id}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            # The process may belong to another user, or have just ended.
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


class SharedMemory:
    """The shared-memory segments that a run has created: those found open or mapped in one of its processes."""

    def __init__(self, run: int, run_id: str, *, existing: set[Path]):
        """Start with no segments.

        Args:
            run: The id of the run's first process.
            run_id: The value of RUN_ID in its other processes.
            existing: The segments from before the run.
        """
        self._run = run
        self._run_id = run_id
        self._seen = existing
        self._of_run: set[Path] = set()

    def scan(self) -> None:
        """Record the segments that the run has created since the last scan."""
        present = _segments()
        for segment in present - self._seen:
            # /proc shows a process's initial environment, so the first process is not found by the id that it set.
            if any(_uses(pid, segment) for pid in [self._run, *processes_of(self._run_id)]):
                self._of_run.add(segment)
        self._seen = present

    def remove(self) -> None:
        """Remove the run's segments that still exist."""
        for segment in self._of_run:
            segment.unlink(missing_ok=True)


def _segments() -> set[Path]:
    return set(_SHARED_MEMORY.iterdir()) if _SHARED_MEMORY.is_dir() else set()


def _uses(pid: int, segment: Path) -> bool:
    process = Path(f"/proc/{pid}")
    # The process may end in the meantime.
    with contextlib.suppress(OSError):
        if any(line.endswith(f" {segment}") for line in (process / "maps").read_text().splitlines()):
            return True
        return any(descriptor.readlink() == segment for descriptor in (process / "fd").iterdir())
    return False


def _end_processes(run_id: str) -> None:
    started = time.monotonic()
    while pids := list(processes_of(run_id)):
        waited = time.monotonic() - started
        if waited > _MAX_WAIT_SECONDS:
            return
        if waited > _GRACE_SECONDS:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _main(run: int, folder: Path) -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    run_id = os.environ[RUN_ID]
    memory = SharedMemory(run, run_id, existing=set(map(Path, sys.stdin.read().splitlines())))
    # When the run ends, this process gets another parent. A shared pipe would be less reliable, because a third process
    # could keep it open.
    while os.getppid() == run:
        time.sleep(_POLL_SECONDS)
        memory.scan()
    _end_processes(run_id)
    memory.remove()
    for link in folder.glob(f"{_LINK_PREFIX}*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(link.readlink(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
