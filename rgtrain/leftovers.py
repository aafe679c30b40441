"""Whatever ends a run, SIGKILL too, a process that outlives it removes what the run has started and made.

Python only and imported by nothing heavy: the same file is the program of that process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# What a process of the run is known by: every process inherits it from the one that started it.
RUN_ID = "RGTRAIN_RUN_ID"
_SHARED_MEMORY = Path("/dev/shm")
_LOOK_EVERY_SECONDS = 0.5
# Children that see their parent's end and tidy up themselves, as Python's resource tracker does, may do so.
_GRACE_SECONDS = 3
# What doesn't die of SIGKILL by then waits for a device.
_PATIENCE_SECONDS = 60


def clean_up_after_this_process() -> Path:
    """Have all processes of this run ended and what they made removed once this process is gone, whatever ends it.

    Call it before any of them is started. Returns a new folder for the run's temporary files, which is removed too.
    """
    os.environ[RUN_ID] = uuid.uuid4().hex
    # A short name: the paths of Ray's sockets in it have to fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rg_"))
    cleaner = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(folder)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # What is signalled to the run's group, or its terminal, is not for this one.
        start_new_session=True,
    )
    with cleaner.stdin as others:
        others.write("\n".join(map(str, _segments())).encode())
    return folder


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
