"""Report a job in which nothing moves for long, with where its threads stand, and end it if that goes on."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rgtrain.jobs.activity import Activity
from rgtrain.machine.orphan_cleanup import RUN_ID, processes_of

EXIT_HUNG = 1
# Ray's workers of the run on this machine answer it with where their threads stand.
_WHERE = signal.SIGUSR1
_LOOK_EVERY_SECONDS = 1.0


@contextmanager
def watched(
    activity: Activity,
    *,
    report_after_s: float | None,
    end_after_s: float | None,
    end: Callable[[str, int], None],
    announce: Callable[[str], None],
    traces_in: str = "train.log",
    end_setting: str = "trainer.watchdog.end_after_s",
) -> Iterator[None]:
    """Watch `activity` for the duration of the block, from a thread.

    Args:
        activity: What is watched; it stands still while its number of moves stays the same.
        report_after_s: Seconds of standstill after which to report it once; None to report nothing.
        end_after_s: Seconds of standstill after which to call `end`; None to call it never.
        end: Given the reason and the exit code EXIT_HUNG; it should end the process, whatever other threads do.
        announce: Shows a line to the user.
        traces_in: The name of the file that stderr goes to, for the report.
        end_setting: The name of the setting behind `end_after_s`, for the reason.
    """
    over = threading.Event()
    report_after_s, end_after_s = report_after_s or float("inf"), end_after_s or float("inf")

    def watch() -> None:
        moves, still_s, reported = activity.num_moves, 0.0, False
        before = time.monotonic()
        while not over.wait(_LOOK_EVERY_SECONDS):
            now = time.monotonic()
            # A job that was suspended itself, as schedulers do, has not stood still all that time.
            still_s += min(now - before, 2 * _LOOK_EVERY_SECONDS)
            before = now
            if activity.num_moves != moves:
                moves, still_s, reported = activity.num_moves, 0.0, False
            place = f" at {activity.place()}" if activity.place() else ""
            if still_s >= report_after_s and not reported:
                reported = True
                announce(f"{activity} has stood still for {still_s:.0f} s{place}; stack traces are in {traces_in}")
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                _ask_workers()
            if still_s >= end_after_s:
                end(f"ended: {activity} stood still for {still_s:.0f} s{place} ({end_setting})", EXIT_HUNG)
                return

    threading.Thread(target=watch, daemon=True, name="watchdog").start()
    try:
        yield
    finally:
        over.set()


def answer_where() -> None:
    """Have this process print where its threads stand when the watchdog asks; Ray calls it in every worker."""
    faulthandler.register(_WHERE, all_threads=True)


def _ask_workers() -> None:
    for pid in processes_of(os.environ.get(RUN_ID, "")):
        process = Path(f"/proc/{pid}")
        # It may end meanwhile. SIGUSR1 would end a process that has no handler for it.
        with suppress(OSError):
            if process.joinpath("cmdline").read_text().startswith("ray::") and _catches(process, _WHERE):
                os.kill(pid, _WHERE)


def _catches(process: Path, number: signal.Signals) -> bool:
    status = dict(line.split(":", 1) for line in process.joinpath("status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & 1 << (number - 1))
