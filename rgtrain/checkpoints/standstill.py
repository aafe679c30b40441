"""Report an export in which nothing moves, as on a network file system that does not answer."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

REPORT_AFTER_S = 600.0
_LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class ExportProgress:
    """The file or tensor that an export works on, and how often it moved on. Any thread may read it."""

    def __init__(self, name: str):
        self.name = name
        self.num_moves = 0

    def moved(self, name: str) -> None:
        """Note progress: the export now works on `name`."""
        self.name = name
        self.num_moves += 1


@contextmanager
def reported_standstill(start: str, *, after_s: float | None = None) -> Iterator[ExportProgress]:
    """Watch the yielded progress for the duration of the block, and log a warning if it stops.

    Args:
        start: What the export works on at first.
        after_s: Seconds of standstill after which to warn, once per standstill; by default, REPORT_AFTER_S.
    """
    progress, over = ExportProgress(start), threading.Event()
    limit = REPORT_AFTER_S if after_s is None else after_s

    def watch() -> None:
        moves, still_s, before = progress.num_moves, 0.0, time.monotonic()
        reported = False
        while not over.wait(min(_LOOK_EVERY_S, limit)):
            now = time.monotonic()
            # A process that was suspended itself has not stood still all that time.
            still_s, before = still_s + min(now - before, 2 * _LOOK_EVERY_S), now
            if progress.num_moves != moves:
                moves, still_s, reported = progress.num_moves, 0.0, False
            elif still_s >= limit and not reported:
                reported = True
                logger.warning("no progress for %.0f s at %s: does its file system answer?", still_s, progress.name)

    thread = threading.Thread(target=watch, daemon=True, name="standstill")
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()
