"""Stop an evaluation on SIGINT, SIGTERM or SIGHUP. Received answers are judged and kept, unless that takes too long."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgtrain.evaluation.evaluation_progress import say
from rgtrain.jobs.signals import EXIT_REQUEUE, accepted_signals, exit_code_of, is_second_request, received

# Schedulers often kill a job 30 s after SIGTERM.
_STOP_WITHIN_SECONDS = 25.0


class EvaluationStopped(Exception):
    """The evaluation was asked to stop."""


class EvaluationStopRequest:
    """A request to stop the evaluation, made by a signal.

    A separate thread receives signals too, so that the process ends even if the main thread is stuck in a library.

    Attributes:
        is_made: Whether a signal has arrived.
        exit_code: The exit code for that signal.
        outlook: Returns the end of the last line, which says how many answers are kept and how to continue.
    """

    def __init__(self) -> None:
        self.is_made = False
        self.exit_code = EXIT_REQUEUE
        self.outlook: Callable[[], str] = lambda: "no prompt was sent yet; the same command starts again"
        self._reason = ""
        self._is_answering = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals in this block. SIGHUP stays ignored if it was ignored before, as under nohup.

        Raises:
            EvaluationStopped: A signal arrived outside `answering`. Inside `answering`, `check` raises it.
        """
        with received(accepted_signals(), self._handle) as arrivals:
            threading.Thread(target=self._hear, args=(arrivals,), daemon=True, name="signals").start()
            yield

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Keep signals from interrupting this block. The block calls `check` often and keeps received answers."""
        self.check()
        self._is_answering = True
        try:
            yield
        finally:
            self._is_answering = False

    def check(self) -> None:
        """Raise EvaluationStopped if a signal has arrived."""
        if self.is_made:
            raise EvaluationStopped(self._reason)

    def _handle(self, number: int, _: object) -> None:
        # This runs in the main thread. A second signal must not interrupt the clean-up after the first one.
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
                    say(f"\n{reason}, judging the answers received so far; a second signal stops at once")
                late = f"{reason}; judging the received answers took longer than {_STOP_WITHIN_SECONDS:g} s"
                timer = threading.Timer(_STOP_WITHIN_SECONDS, self._end, args=(late, code))
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
