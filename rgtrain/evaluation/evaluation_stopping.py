"""Stop an evaluation on SIGINT, SIGTERM or SIGHUP: received answers are judged and kept, unless that takes too long."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgtrain.evaluation.evaluation_progress import say
from rgtrain.jobs.signals import EXIT_REQUEUE, accepted_signals, exit_code_of, is_second_request, received

# Schedulers kill a job 30 s after SIGTERM.
_WITHIN_SECONDS = 25.0


class EvaluationStopped(Exception):
    """The evaluation was asked to stop."""


class EvaluationStopRequest:
    """The request to stop. A thread receives it, so that it works while the main thread is stuck in a library.

    `outlook` returns the end of the last line: how many answers are kept, and how to go on.
    """

    def __init__(self) -> None:
        self.is_made = False
        self.exit_code = EXIT_REQUEUE
        self.outlook: Callable[[], str] = lambda: "nothing was asked yet; the same command starts again"
        self._reason = ""
        self._is_answering = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals in this block. An inherited choice to ignore SIGHUP, as nohup makes it, is kept.

        Raises:
            EvaluationStopped: In the main thread, at the first signal before `answering`; later from `check`.
        """
        with received(accepted_signals(), self._handle) as arrivals:
            threading.Thread(target=self._hear, args=(arrivals,), daemon=True, name="signals").start()
            yield

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Let no signal interrupt this block, which calls `check` often and keeps the answers that have come."""
        self.check()
        self._is_answering = True
        try:
            yield
        finally:
            self._is_answering = False

    def check(self) -> None:
        """Raise EvaluationStopped if the request is made."""
        if self.is_made:
            raise EvaluationStopped(self._reason)

    def _handle(self, number: int, _: object) -> None:
        # In the main thread. A signal that comes again must not interrupt the clean-up after the first one.
        if self.is_made:
            return
        self._reason, self.exit_code = _reason_and_code(number)
        self.is_made = True
        if not self._is_answering:
            raise EvaluationStopped(self._reason)

    def _hear(self, arrivals: Iterator[signal.Signals]) -> None:
        first_at: float | None = None
        for number in arrivals:
            if first_at is None:
                first_at = time.monotonic()
                reason, code = _reason_and_code(number)
                if self._is_answering:
                    say(f"\n{reason}: keeping the answers that have come; a second signal stops at once")
                late = f"{reason}; ended before all was kept, because that took over {_WITHIN_SECONDS:g} s"
                timer = threading.Timer(_WITHIN_SECONDS, self._end, args=(late, code))
                timer.daemon = True
                timer.start()
            elif is_second_request(number, seconds_since_first=time.monotonic() - first_at):
                self._end(f"stopped at once by a second signal ({number.name})", code)

    def _end(self, reason: str, exit_code: int) -> None:
        """End this process from any thread, even if the main thread is stuck."""
        say(f"{reason}; {self.outlook()}")
        os._exit(exit_code)


def _reason_and_code(number: int) -> tuple[str, int]:
    return f"stopped by {signal.Signals(number).name}", exit_code_of(number)


STOP = EvaluationStopRequest()
