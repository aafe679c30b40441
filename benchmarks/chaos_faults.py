"""Define the faults that chaos.py inflicts on a run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chaos_run import STEP, TEST_FREQ, Start, sound_steps

_DISK_MB = 400
_FILLER = "filler"
# Metrics and logs fit into this space, but a checkpoint does not.
_LITTLE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
_SUSPENDED_SECONDS = 8
_DAMAGED_LINES = (b"\0" * 512, b"", b"null", b"{}", b"[1, 2]", b'{"step": "three"}', b"\xff\xfe\x00", b'{"step": 2')
_VALIDATION_SECONDS = 300


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: Name in the table of outcomes.
        inflict: Inflicts the fault on a start, given the run's folder and a random number generator.
        cause: Pattern that the output has to contain before or after the restart. None if the run dies before it
            can print anything, or is expected to continue.
        exit_code: Exit code that the run has to end with. None for any.
        needs_steps: Whether the fault can happen only after the first step.
        needs_disk: Whether the fault needs a small file system, see `disk_of`.
        dapo: Whether to inflict the fault on a DAPO run, which draws further prompts during generation.
    """

    name: str
    inflict: Callable[[Start, Path, random.Random], None]
    cause: str | None = None
    exit_code: int | None = None
    needs_steps: bool = False
    needs_disk: bool = False
    dapo: bool = False


def _signalled(number: signal.Signals) -> Callable[[Start, Path, random.Random], None]:
    return lambda start, run_dir, rng: os.kill(start.process.pid, number)


def _killed(name: str) -> Callable[[Start, Path, random.Random], None]:
    def inflict(start: Start, run_dir: Path, rng: random.Random) -> None:
        # Scorers are replaced often. There may be none at the moment, or the chosen one may just have ended.
        while not start.is_over():
            with suppress(ProcessLookupError):
                if pids := start.pids_of(name):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    return
            time.sleep(0.01)
        raise StopIteration

    return inflict


def _started_twice(start: Start, run_dir: Path, rng: random.Random) -> None:
    """Start the same command again during the run; the second start has to be refused without any change."""
    second = Start(start.command)
    code = second.end()
    if code != 2 and not start.is_over():
        raise RuntimeError(f"a second start on one folder ended with exit code {code}:\n{second.output()}")


def _suspended(start: Start, run_dir: Path, rng: random.Random) -> None:
    """Suspend all processes of the run, as a scheduler or a closed laptop lid does."""
    pids = [start.process.pid, *start.all_pids()]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(_SUSPENDED_SECONDS)


def _killed_in_validation(start: Start, run_dir: Path, rng: random.Random) -> None:
    """Send SIGKILL after a checkpoint is published and before its validation is recorded."""
    deadline = time.monotonic() + _VALIDATION_SECONDS
    while not _is_validating(run_dir):
        if start.is_over() or time.monotonic() > deadline:
            raise StopIteration
        time.sleep(0.005)
    os.kill(start.process.pid, signal.SIGKILL)


def _is_validating(run_dir: Path) -> bool:
    try:
        step = int((run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    except (FileNotFoundError, ValueError):
        return False
    return step % TEST_FREQ == 0 and f'{{"step": {step},' not in (run_dir / "metrics.jsonl").read_text()


def _truncated(start: Start, run_dir: Path, rng: random.Random) -> None:
    """Truncate a file of the last checkpoint, as a power loss does."""
    while len(sound_steps(run_dir)) < 2:
        if not start.wait_lines(STEP, 1):
            raise StopIteration
    _kill(start)
    steps = sound_steps(run_dir)
    paths = [path for path in sorted(steps[max(steps)].rglob("*")) if path.is_file() and path.stat().st_size]
    path = rng.choice(paths)
    os.truncate(path, rng.randrange(path.stat().st_size))


def _damaged_metrics(start: Start, run_dir: Path, rng: random.Random) -> None:
    """Insert a line that is no record into metrics.jsonl, as a power loss does."""
    _kill(start)
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(rng.randint(0, len(lines)), rng.choice(_DAMAGED_LINES) + b"\n")
    path.write_bytes(b"".join(lines))


def _linked_checkpoints(start: Start, run_dir: Path, rng: random.Random) -> None:
    """Move all checkpoints to another disk and link them back, as users do when their disk is full."""
    _kill(start)
    elsewhere = run_dir.parent.parent / f"{run_dir.name}_moved"
    for step, folder in sound_steps(run_dir).items():
        if not folder.is_symlink():
            target = elsewhere / f"{len(list(elsewhere.glob('*')))}_{step}"
            target.parent.mkdir(exist_ok=True)
            shutil.move(folder, target)
            folder.symlink_to(target)


def _kill(start: Start) -> None:
    os.kill(start.process.pid, signal.SIGKILL)
    start.end()


def _filled(free_bytes: int) -> Callable[[Start, Path, random.Random], None]:
    def inflict(start: Start, run_dir: Path, rng: random.Random) -> None:
        # Write block by block, because the run writes too and could make a single large write fail.
        with suppress(OSError), (run_dir.parent / _FILLER).open("wb", buffering=0) as file:
            while _free_bytes(run_dir) > free_bytes or not free_bytes:
                file.write(bytes(_BLOCK_BYTES))

    return inflict


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


_WORKER_DIED = r"a training worker died in "
FAULTS = (
    Fault("SIGKILL to the trainer", _signalled(signal.SIGKILL)),
    Fault("SIGTERM to the trainer", _signalled(signal.SIGTERM), cause="SIGTERM", exit_code=75),
    Fault("SIGHUP to the trainer", _signalled(signal.SIGHUP), cause="SIGHUP", exit_code=75),
    Fault("SIGKILL to the training worker, with vLLM in it", _killed("ray::WorkerDict"), _WORKER_DIED, 1, True),
    Fault("SIGKILL to a scorer", _killed("scorer"), needs_steps=True),
    Fault(
        "SIGKILL to the server that forks scorers", _killed("scoring.server"), "scoring server ended", needs_steps=True
    ),
    Fault("SIGKILL during validation", _killed_in_validation, needs_steps=True),
    Fault("SIGKILL to a DAPO run", _signalled(signal.SIGKILL), dapo=True),
    Fault("a second start on the folder", _started_twice),
    Fault("all processes suspended for 8 s", _suspended, needs_steps=True),
    Fault("damaged line in metrics.jsonl", _damaged_metrics, cause=r"metrics\.jsonl", needs_steps=True),
    Fault("checkpoint truncated", _truncated, cause="skipping checkpoint", needs_steps=True),
    Fault("checkpoints moved and linked back", _linked_checkpoints, needs_steps=True),
    Fault("no room for a checkpoint", _filled(_LITTLE_BYTES), "No space left", needs_steps=True, needs_disk=True),
    Fault("disk full", _filled(0), "No space left", needs_steps=True, needs_disk=True),
)


@contextmanager
def disk_of(folder: Path) -> Iterator[Path | None]:
    """Mount a small file system that can be filled; yield None if this user may not mount one."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "chaos", disk], capture_output=True)
    if mounted.returncode:
        print(f"no full disks: {mounted.stderr.decode().strip()}")
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def free_disk(run_dir: Path) -> None:
    """Delete the file that fills the disk."""
    (run_dir.parent / _FILLER).unlink(missing_ok=True)


def records(run_dir: Path) -> list[dict]:
    """Return the records of metrics.jsonl without damaged lines, such as those that a fault inserted."""
    found = []
    path = run_dir / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                found.append(record)
    return found


def names_cause(fault: Fault, *outputs: str) -> bool:
    """Return whether the output of the start that ended, or of the next one, names the fault's cause."""
    return fault.cause is None or any(re.search(fault.cause, output) for output in outputs)
