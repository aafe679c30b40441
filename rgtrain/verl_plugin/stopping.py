"""Stop a run on SIGTERM, SIGINT or SIGHUP: the step is finished and saved, unless that takes too long."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgtrain.verl_plugin.progress import announce

# EX_TEMPFAIL, "try again later": schedulers can be configured to requeue on it.
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 128 + signal.SIGINT
# A terminal that closes, such as that of an ssh session, sends SIGHUP.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One Ctrl-C, or one SIGTERM to a whole job, reaches this process from the terminal and once more from its parent.
_SAME_SIGNAL_SECONDS = 1.0


class Stopped(Exception):
    """The run ends after a whole step because it was asked to stop."""


class StopRequest:
    """The request to stop a run. A thread receives it, so that it works while the main thread is stuck in a library."""

    def __init__(self) -> None:
        self.is_made = False
        self.exit_code = EXIT_REQUEUE
        self._can_save = False
        self._made_at = 0.0
        self._heard = _SIGNALS

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
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        is_nohup = handlers[signal.SIGHUP] == signal.SIG_IGN
        self._heard = tuple(number for number in _SIGNALS if not (is_nohup and number == signal.SIGHUP))
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.take_signals()
        threading.Thread(target=self._hear, args=(reader, limit_s, end, begun), daemon=True, name="signals").start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            os.close(writer)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def take_signals(self) -> None:
        """Replace all other handlers of the signals. Call it again after Ray, which sets its own."""
        for number in self._heard:
            # The thread does the work, but Python only wakes it for signals that have a handler.
            signal.signal(number, lambda *_: None)

    def steps_begin(self) -> None:
        """Note that from now on there is something to save."""
        self._can_save = True

    def _hear(self, reader: int, limit_s: float, end: Callable[[str, int], None], begun: Callable[[], None]) -> None:
        # Until the writer is closed.
        while received := os.read(reader, 1):
            number = signal.Signals(received[0])
            if number not in self._heard:
                continue
            if not self.is_made:
                self._begin(number, limit_s, end, begun)
            # A closing terminal sends SIGHUP several times: the kernel, the shell and ssh each do.
            elif number != signal.SIGHUP and time.monotonic() - self._made_at > _SAME_SIGNAL_SECONDS:
                end(f"stopped at once by a second signal ({number.name})", self.exit_code)

    def _begin(
        self, number: signal.Signals, limit_s: float, end: Callable[[str, int], None], begun: Callable[[], None]
    ) -> None:
        self._made_at = time.monotonic()
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_REQUEUE
        self.is_made = True
        begun()
        if not self._can_save:
            end(f"stopped by {number.name} during start-up", self.exit_code)
        announce(f"{number.name}: stopping after this step, within {limit_s:g} s; a second signal stops at once")
        text = f"stopped by {number.name} without saving this step: it took over {limit_s:g} s (trainer.stop_within_s)"
        timer = threading.Timer(limit_s, end, args=(text, self.exit_code))
        timer.daemon = True
        timer.start()


STOP = StopRequest()


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Start child processes in this block that never receive the signals that stop a run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
