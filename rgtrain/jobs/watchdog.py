"""Report a job that makes no progress, with the stacks of its threads, and end it if the standstill lasts."""

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
# On this signal, a Ray worker of the run prints the stacks of its threads.
_STACKS_SIGNAL = signal.SIGUSR1
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
    """Watch `activity` from a thread for the duration of the block.

    Args:
        activity: The activity to watch. It stands still while its number of moves does not change.
        report_after_s: Seconds of standstill until it is reported once, or None for no report.
        end_after_s: Seconds of standstill until `end` is called, or None for no limit.
        end: Called with the reason and the exit code EXIT_HUNG. It should end the process even if other threads are
            stuck.
        announce: Shows a line to the user.
        traces_in: The name of the file that receives stderr, for the report.
        end_setting: The name of the setting behind `end_after_s`, for the reason.
    """
    is_over = threading.Event()
    report_after_s, end_after_s = report_after_s or float("inf"), end_after_s or float("inf")

    def watch() -> None:
        moves, still_s, reported = activity.num_moves, 0.0, False
        before = time.monotonic()
        while not is_over.wait(_LOOK_EVERY_SECONDS):
            now = time.monotonic()
            # Time during which a scheduler suspended this process is not a standstill.
            still_s += min(now - before, 2 * _LOOK_EVERY_SECONDS)
            before = now
            if activity.num_moves != moves:
                moves, still_s, reported = activity.num_moves, 0.0, False
            place = f" at {activity.place()}" if activity.place() else ""
            if still_s >= report_after_s and not reported:
                reported = True
                announce(f"{activity} has stood still for {still_s:.0f} s{place}; stack traces are in {traces_in}")
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                _request_worker_stacks()
            if still_s >= end_after_s:
                end(f"ended: {activity} stood still for {still_s:.0f} s{place} ({end_setting})", EXIT_HUNG)
                return

    threading.Thread(target=watch, daemon=True, name="watchdog").start()
    try:
        yield
    finally:
        is_over.set()


def print_stacks_on_request() -> None:
    """Make this process print the stacks of its threads when the watchdog asks. Ray calls this in every worker."""
    faulthandler.register(_STACKS_SIGNAL, all_threads=True)


def _request_worker_stacks() -> None:
    for pid in processes_of(os.environ.get(RUN_ID, "")):
        process = Path(f"/proc/{pid}")
        # The process may end meanwhile. SIGUSR1 would kill a process that has no handler for it.
        with suppress(OSError):
            if process.joinpath("cmdline").read_text().startswith("ray::") and _catches(process, _STACKS_SIGNAL):
                os.kill(pid, _STACKS_SIGNAL)


def _catches(process: Path, number: signal.Signals) -> bool:
    status = dict(line.split(":", 1) for line in process.joinpath("status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & 1 << (number - 1))
