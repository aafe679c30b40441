"""Stop a run on SIGTERM, SIGINT or SIGHUP: the step is finished and saved, unless that takes too long."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgtrain.jobs.signals import (
    EXIT_REQUEUE,
    STOP_SIGNALS,
    accepted_signals,
    exit_code_of,
    is_second_request,
    received,
)
from rgtrain.training.lifecycle.console import announce


class TrainingStopped(Exception):
    """The run ends after a whole step because it was asked to stop."""


class TrainingStopRequest:
    """The request to stop a run. A thread receives it, so that it works while the main thread is stuck in a library."""

    def __init__(self) -> None:
        self.is_made = False
        self.exit_code = EXIT_REQUEUE
        self._can_save = False
        self._made_at = 0.0
        self._accepted: tuple[signal.Signals, ...] = STOP_SIGNALS

    @contextmanager
    def listening(
        self, *, limit_s: float, end: Callable[[str, int], None], begun: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Receive the signals in this block. An inherited choice to ignore SIGHUP, as nohup makes it, is kept.

        Args:
            limit_s: Seconds after the first signal until `end` is called. A second signal calls it at once.
            end: Ends the process, given the reason and the exit code, even if other threads are stuck.
            begun: Called when the first signal has arrived.
        """
        self._accepted = accepted_signals()
        with received(self._accepted, _wake_thread) as arrivals:
            hear = threading.Thread(
                target=self._hear, args=(arrivals, limit_s, end, begun), daemon=True, name="signals"
            )
            hear.start()
            yield

    def take_signals(self) -> None:
        """Replace all other handlers of the signals. Call it again after Ray, which sets its own."""
        for number in self._accepted:
            signal.signal(number, _wake_thread)

    def steps_begin(self) -> None:
        """Note that from now on there is something to save."""
        self._can_save = True

    def _hear(
        self,
        arrivals: Iterator[signal.Signals],
        limit_s: float,
        end: Callable[[str, int], None],
        begun: Callable[[], None],
    ) -> None:
        for number in arrivals:
            if not self.is_made:
                self._begin(number, limit_s, end, begun)
            elif is_second_request(number, seconds_since_first=time.monotonic() - self._made_at):
                end(f"stopped at once by a second signal ({number.name})", self.exit_code)

    def _begin(
        self, number: signal.Signals, limit_s: float, end: Callable[[str, int], None], begun: Callable[[], None]
    ) -> None:
        self._made_at = time.monotonic()
        self.exit_code = exit_code_of(number)
        self.is_made = True
        begun()
        if not self._can_save:
            end(f"stopped by {number.name} during start-up", self.exit_code)
        announce(f"{number.name}: stopping after this step, within {limit_s:g} s; a second signal stops at once")
        text = f"stopped by {number.name} without saving this step: it took over {limit_s:g} s (trainer.stop_within_s)"
        timer = threading.Timer(limit_s, end, args=(text, self.exit_code))
        timer.daemon = True
        timer.start()


def _wake_thread(*_: object) -> None:
    """Do nothing: the thread does the work, but Python only wakes it for signals that have a handler."""


STOP = TrainingStopRequest()


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Start child processes in this block that never receive the signals that stop a run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
