"""What can happen to a run, for chaos.py."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chaos_run import Start, sound_steps

_DISK_MB = 400
_FILLER = "filler"
# A checkpoint doesn't fit in it, metrics and logs do.
_LITTLE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Fault:
    """`strike` does it. `needs_steps`: it can't happen while a run starts. `needs_disk`: see disk_of."""

    name: str
    strike: Callable[[Start, Path, random.Random], None]
    needs_steps: bool = False
    needs_disk: bool = False


def _signalled(number: signal.Signals) -> Callable[[Start, Path, random.Random], None]:
    return lambda start, run_dir, rng: os.kill(start.process.pid, number)


def _killed(name: str) -> Callable[[Start, Path, random.Random], None]:
    return lambda start, run_dir, rng: os.kill(rng.choice(start.pids_of(name)), signal.SIGKILL)


def _truncated(start: Start, run_dir: Path, rng: random.Random) -> None:
    """A file of the last checkpoint, as by a machine that lost power."""
    os.kill(start.process.pid, signal.SIGKILL)
    start.end()
    steps = sound_steps(run_dir)
    if len(steps) > 1:
        paths = [path for path in sorted(steps[max(steps)].rglob("*")) if path.is_file() and path.stat().st_size]
        path = rng.choice(paths)
        os.truncate(path, rng.randrange(path.stat().st_size))


def _filled(free_bytes: int) -> Callable[[Start, Path, random.Random], None]:
    def strike(start: Start, run_dir: Path, rng: random.Random) -> None:
        # Block by block: the run writes too, and all at once would be refused where it is faster.
        with suppress(OSError), (run_dir.parent / _FILLER).open("wb", buffering=0) as file:
            while _free_bytes(run_dir) > free_bytes or not free_bytes:
                file.write(bytes(_BLOCK_BYTES))

    return strike


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


FAULTS = (
    Fault("SIGKILL to the trainer", _signalled(signal.SIGKILL)),
    Fault("SIGTERM to the trainer", _signalled(signal.SIGTERM)),
    Fault("SIGKILL to the training worker, with vLLM in it", _killed("ray::WorkerDict"), needs_steps=True),
    Fault("SIGKILL to a scorer", _killed("scorer"), needs_steps=True),
    Fault("SIGKILL to the server that scorers are forked from", _killed("scoring.server"), needs_steps=True),
    Fault("checkpoint truncated", _truncated, needs_steps=True),
    Fault("no room for a checkpoint", _filled(_LITTLE_BYTES), needs_steps=True, needs_disk=True),
    Fault("disk full", _filled(0), needs_steps=True, needs_disk=True),
)


@contextmanager
def disk_of(folder: Path) -> Iterator[Path | None]:
    """A small file system to be filled; None where this user may not mount one."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "chaos", disk], capture_output=True)
    if mounted.returncode:
        print(f"no full disks: {mounted.stderr.decode().strip()}")
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def freed(run_dir: Path) -> None:
    """End what a full disk was."""
    (run_dir.parent / _FILLER).unlink(missing_ok=True)
