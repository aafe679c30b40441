"""Remove a run's processes and temporary files after its end, even after SIGKILL, from a process that outlives it.

Needs only Python's standard library, because the same file is the program of that process.
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

# What a process of the run is known by: every process inherits it from the one that started it.
RUN_ID = "RGTRAIN_RUN_ID"
# The environment variable with the run's temporary folder, for all of its processes on this machine.
FOLDER = "RGTRAIN_TEMPORARY_FOLDER"
# A socket's path has 107 bytes at most. Behind the parent of the run's folder, Ray needs up to 82 of them, as in
# rg_abcdefgh/r/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store. Behind TMPDIR, Python's multiprocessing
# needs 32.
_MAX_PARENT_BYTES, _MAX_TMPDIR_BYTES = 25, 75
# In order of preference. A session's XDG_RUNTIME_DIR is removed when its user logs out, and /dev/shm is memory.
_SHORT_PARENTS = ("/tmp", "/var/tmp", "/dev/shm")
_ROOM_BYTES = 1 << 30
_SHARED_MEMORY = Path("/dev/shm")
_LOOK_EVERY_SECONDS = 0.5
# Children that see their parent's end and tidy up themselves, as Python's resource tracker does, may do so.
_GRACE_SECONDS = 3
# What doesn't die of SIGKILL by then waits for a device.
_PATIENCE_SECONDS = 60


def clean_up_after_this_process() -> Path:
    """End all processes of this run and remove its files once this process has ended, for any reason.

    Call it before any of them is started. If TMPDIR is too long for sockets, this process and those it starts use the
    returned folder in its place.

    Returns:
        A new private folder for the run's temporary files, which is removed too (see `private_folder`).
    """
    os.environ[RUN_ID] = uuid.uuid4().hex
    folder = _make_folder()
    os.environ[FOLDER] = str(folder)
    # vLLM makes its sockets here.
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
    if len(os.fsencode(tempfile.gettempdir())) > _MAX_TMPDIR_BYTES:
        os.environ["TMPDIR"] = str(folder)
        # Python remembers the one before.
        tempfile.tempdir = None
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as others:
        with os.fdopen(reading, "rb") as theirs:
            subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(folder)],
                cwd="/",
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Signals to the run's process group, or from its terminal, must not reach this process.
                start_new_session=True,
            )
        others.write("\n".join(map(str, _segments())).encode())
    return folder


def private_folder() -> Path:
    """Return this run's temporary folder, with a path that is short enough for sockets in it, such as `FOLDER/NAME`.

    Returns:
        A folder with mode 0700 on this machine, removed at the run's end. A process without a run gets its own.
    """
    # A process on another machine inherits the name of a folder that is not there, or is somebody else's.
    if not _is_private(os.environ.get(FOLDER, "")):
        folder = _make_folder()
        os.environ[FOLDER] = str(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(os.environ[FOLDER])


def _is_private(folder: str) -> bool:
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def short_parent() -> Path:
    """Return the folder to make a run's temporary folder in: TMPDIR, or another if its path is too long for sockets.

    Returns:
        A writable folder with 1 GiB of free space, or else the one with the most.
    """
    parents = dict.fromkeys([tempfile.gettempdir(), *_SHORT_PARENTS])
    usable = [
        parent
        for parent in parents
        if len(os.fsencode(parent)) <= _MAX_PARENT_BYTES and os.access(parent, os.W_OK | os.X_OK)
    ]
    if not usable:
        sys.exit(
            f"error: no folder for sockets: TMPDIR is {tempfile.gettempdir()}; set it to a writable folder whose path "
            f"has {_MAX_PARENT_BYTES} bytes at most"
        )
    roomy = [parent for parent in usable if shutil.disk_usage(parent).free > _ROOM_BYTES]
    return Path(roomy[0] if roomy else max(usable, key=lambda parent: shutil.disk_usage(parent).free))


def _make_folder() -> Path:
    # mkdtemp gives it mode 0700.
    return Path(tempfile.mkdtemp(prefix="rg_", dir=short_parent()))


def processes_of(run_id: str) -> Iterator[int]:
    """The processes that inherited `run_id`, without this one and those that have ended."""
    mark = f"{RUN_ID}={run_id}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            # Another user's process, or one that has just ended.
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


class SharedMemory:
    """The shared-memory segments that a run has made: those found open or mapped in one of its processes.

    `before` were there before it began.
    """

    def __init__(self, run: int, run_id: str, *, before: set[Path]):
        self._run = run
        self._run_id = run_id
        self._seen = before
        self._own: set[Path] = set()

    def look(self) -> None:
        """Note what has come since the last look, and whose it is."""
        there = _segments()
        for segment in there - self._seen:
            # The first one gave itself its id: the kernel doesn't know.
            if any(_holds(pid, segment) for pid in [self._run, *processes_of(self._run_id)]):
                self._own.add(segment)
        self._seen = there

    def remove(self) -> None:
        """Remove what is the run's and still there."""
        for segment in self._own:
            segment.unlink(missing_ok=True)


def _segments() -> set[Path]:
    return set(_SHARED_MEMORY.iterdir()) if _SHARED_MEMORY.is_dir() else set()


def _holds(pid: int, segment: Path) -> bool:
    process = Path(f"/proc/{pid}")
    # It may end meanwhile.
    with contextlib.suppress(OSError):
        if any(line.endswith(f" {segment}") for line in (process / "maps").read_text().splitlines()):
            return True
        return any(descriptor.readlink() == segment for descriptor in (process / "fd").iterdir())
    return False


def _end(run_id: str) -> None:
    started = time.monotonic()
    while pids := list(processes_of(run_id)):
        waited = time.monotonic() - started
        if waited > _PATIENCE_SECONDS:
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
    memory = SharedMemory(run, run_id, before=set(map(Path, sys.stdin.read().splitlines())))
    # Its end gives this process another parent. Nothing that the two would share could be held open by a third.
    while os.getppid() == run:
        time.sleep(_LOOK_EVERY_SECONDS)
        memory.look()
    _end(run_id)
    memory.remove()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
