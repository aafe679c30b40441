"""No run hangs: a phase in which nothing moves for long is reported, with where it stands, and at last ended."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rgtrain.leftovers import RUN_ID, processes_of
from rgtrain.verl_plugin.activity import Activity
from rgtrain.verl_plugin.progress import announce

EXIT_HUNG = 1
# What Ray's workers of the run on this machine answer with where they stand.
_WHERE = signal.SIGUSR1
_LOOK_EVERY_SECONDS = 1.0


@contextmanager
def watched(
    activity: Activity, *, report_after_s: float | None, end_after_s: float | None, end: Callable[[str, int], None]
) -> Iterator[None]:
    """Watch `activity` for as long as this lasts; seconds of standstill after which to report, and to call `end`.

    None: never. `end` is given the reason and the exit code.
    """
    over = threading.Event()
    limits = (report_after_s or float("inf"), end_after_s or float("inf"))
    threading.Thread(target=_watch, args=(activity, *limits, end, over), daemon=True, name="watchdog").start()
    try:
        yield
    finally:
        over.set()


def _watch(
    activity: Activity,
    report_after_s: float,
    end_after_s: float,
    end: Callable[[str, int], None],
    over: threading.Event,
) -> None:
    moves, still_s, reported = activity.num_moves, 0.0, False
    before = time.monotonic()
    while not over.wait(_LOOK_EVERY_SECONDS):
        now = time.monotonic()
        # A run that was itself suspended, as schedulers do, has not stood still all that time.
        still_s += min(now - before, 2 * _LOOK_EVERY_SECONDS)
        before = now
        if activity.num_moves != moves:
            moves, still_s, reported = activity.num_moves, 0.0, False
        if still_s >= report_after_s and not reported:
            reported = True
            announce(f"{activity} has stood still for {still_s:.0f} s; where all threads stand is in train.log")
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            _ask_workers()
        if still_s >= end_after_s:
            end(f"ended: {activity} stood still for {still_s:.0f} s (trainer.watchdog.end_after_s)", EXIT_HUNG)


def answer_where() -> None:
    """Have this process print where its threads stand when the watchdog asks; Ray calls it in every worker."""
    faulthandler.register(_WHERE, all_threads=True)


def _ask_workers() -> None:
    for pid in processes_of(os.environ.get(RUN_ID, "")):
        process = Path(f"/proc/{pid}")
        # It may end meanwhile; and one that doesn't listen would be ended by being asked.
        with suppress(OSError):
            if process.joinpath("cmdline").read_text().startswith("ray::") and _catches(process, _WHERE):
                os.kill(pid, _WHERE)


def _catches(process: Path, number: signal.Signals) -> bool:
    status = dict(line.split(":", 1) for line in process.joinpath("status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & 1 << (number - 1))
