"""How a run is stopped from outside: SIGTERM and SIGINT wait for the step and its checkpoint, for a set time."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgtrain.verl_plugin.progress import announce

# EX_TEMPFAIL, "try again later": what schedulers can be told to requeue on.
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# One Ctrl-C, or one SIGTERM to a whole job, reaches this process from the terminal and once more from its parent.
_SAME_SIGNAL_SECONDS = 1.0


class Stopped(Exception):
    """The run ends after a whole step because it was told to."""


class StopRequest:
    """Whether the run was told to stop. Heard by a thread, also while the main thread is stuck in a library."""

    def __init__(self) -> None:
        self.is_made = False
        self.exit_code = EXIT_REQUEUE
        self._can_save = False
        self._made_at = 0.0

    @contextmanager
    def listening(self, *, limit_s: float, end: Callable[[str, int], None]) -> Iterator[None]:
        """Take SIGTERM and SIGINT for as long as this lasts; `limit_s` after the first, or after a second, call `end`.

        It is given the reason and the exit code, and is to end the process, whatever the other threads do.
        """
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.take_signals()
        threading.Thread(target=self._hear, args=(reader, limit_s, end), daemon=True, name="signals").start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            os.close(writer)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def take_signals(self) -> None:
        """Let no other handler have the signals; again after Ray, which sets its own."""
        for number in _SIGNALS:
            # The thread hears of it; without a handler, there would be nothing to hear.
            signal.signal(number, lambda *_: None)

    def steps_begin(self) -> None:
        """From now on there is something to save."""
        self._can_save = True

    def _hear(self, reader: int, limit_s: float, end: Callable[[str, int], None]) -> None:
        # Until the writer is closed.
        while received := os.read(reader, 1):
            number = signal.Signals(received[0])
            if number not in _SIGNALS:
                continue
            if not self.is_made:
                self._begin(number, limit_s, end)
            elif time.monotonic() - self._made_at > _SAME_SIGNAL_SECONDS:
                end(f"a second {number.name}: ended at once", self.exit_code)

    def _begin(self, number: signal.Signals, limit_s: float, end: Callable[[str, int], None]) -> None:
        self._made_at = time.monotonic()
        self.exit_code = EXIT_REQUEUE if number == signal.SIGTERM else EXIT_INTERRUPTED
        self.is_made = True
        if not self._can_save:
            end(f"{number.name}: ended while starting, with nothing new to save", self.exit_code)
        announce(f"{number.name}: stopping after this step, within {limit_s:g} s; a second one stops at once")
        text = f"{number.name}: ended, not done within {limit_s:g} s (trainer.stop_within_s)"
        timer = threading.Timer(limit_s, end, args=(text, self.exit_code))
        timer.daemon = True
        timer.start()


STOP = StopRequest()


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Processes started meanwhile never get what the run is stopped by, however many of them it is sent to."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
