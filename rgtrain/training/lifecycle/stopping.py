"""Stop a run on SIGTERM, SIGINT or SIGHUP, after the current step is finished and saved or a time limit has passed."""

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
    """The request to stop a run. A thread receives it, so it works even if the main thread is stuck in a library."""

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
        """Receive the signals in this block. Under nohup, SIGHUP stays ignored.

        Args:
            limit_s: Seconds from the first signal until `end` is called. A second signal calls it at once.
            end: Called with the reason and the exit code. It must end the process even if other threads are stuck.
            begun: Called when the first signal has arrived.
        """
        self._accepted = accepted_signals()
        with received(self._accepted, _wake_thread) as arrivals:
            listener = threading.Thread(
                target=self._listen, args=(arrivals, limit_s, end, begun), daemon=True, name="signals"
            )
            listener.start()
            yield

    def take_signals(self) -> None:
        """Replace all other handlers of the signals. Call this again after Ray has set its own handlers."""
        for number in self._accepted:
            signal.signal(number, _wake_thread)

    def steps_begin(self) -> None:
        """Note that the run has reached its first step, so that a stop waits for the step and saves it."""
        self._can_save = True

    def _listen(
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
        announce(f"{number.name}: stopping after this step, within {limit_s:g} s (a second signal stops at once)")
        text = f"stopped by {number.name} without saving this step: it took over {limit_s:g} s (trainer.stop_within_s)"
        timer = threading.Timer(limit_s, end, args=(text, self.exit_code))
        timer.daemon = True
        timer.start()


def _wake_thread(*_: object) -> None:
    """Do nothing. Python wakes the listening thread only for signals that have a handler."""


STOP = TrainingStopRequest()


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Block the stop signals, so that child processes started in this block never receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
