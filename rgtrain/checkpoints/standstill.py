"""Warn about an export that makes no progress, for example because a network file system does not respond."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

REPORT_AFTER_S = 600.0
_CHECK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class ExportProgress:
    """The file or tensor that an export is working on, and the number of advances so far. Any thread may read it."""

    def __init__(self, name: str):
        self.name = name
        self.num_moves = 0

    def moved(self, name: str) -> None:
        """Record an advance: the export is now working on `name`."""
        self.name = name
        self.num_moves += 1


@contextmanager
def warn_on_standstill(start: str, *, after_s: float | None = None) -> Iterator[ExportProgress]:
    """Log a warning if the export makes no progress for a while inside the block.

    Args:
        start: The file or folder that the export works on first.
        after_s: Seconds without progress after which to warn, once per standstill; REPORT_AFTER_S by default.

    Yields:
        The progress, which the export has to update.
    """
    progress, finished = ExportProgress(start), threading.Event()
    limit = REPORT_AFTER_S if after_s is None else after_s

    def watch() -> None:
        moves, still_s, before = progress.num_moves, 0.0, time.monotonic()
        reported = False
        while not finished.wait(min(_CHECK_EVERY_S, limit)):
            now = time.monotonic()
            # Cap each interval, so that time during which this process was suspended does not count.
            still_s, before = still_s + min(now - before, 2 * _CHECK_EVERY_S), now
            if progress.num_moves != moves:
                moves, still_s, reported = progress.num_moves, 0.0, False
            elif still_s >= limit and not reported:
                reported = True
                logger.warning(
                    "no progress for %.0f s at %s; check whether its file system responds", still_s, progress.name
                )

    thread = threading.Thread(target=watch, daemon=True, name="standstill")
    thread.start()
    try:
        yield progress
    finally:
        finished.set()
        thread.join()
