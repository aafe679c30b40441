"""Stop an evaluation on SIGINT, SIGTERM or SIGHUP: received answers are judged and kept, unless that takes too long."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgtrain.evaluating.progress import say

# EX_TEMPFAIL, "try again later": schedulers can be configured to requeue on it.
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 128 + signal.SIGINT
# A terminal that closes, such as that of an ssh session, sends SIGHUP.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One Ctrl-C, or one SIGTERM to a whole job, reaches this process from the terminal and once more from its parent.
_SAME_SIGNAL_SECONDS = 1.0
# Schedulers kill a job 30 s after SIGTERM.
_WITHIN_SECONDS = 25.0


class Stopped(Exception):
    """The evaluation was asked to stop."""


class StopRequest:
    """The request to stop. A thread receives it, so that it works while the main thread is stuck in a library.

    `outlook` returns the end of the last line: how many answers are kept, and how to go on.
    """

    def __init__(self) -> None:
        self.is_made = False
        self.exit_code = EXIT_REQUEUE
        self.outlook: Callable[[], str] = lambda: "nothing was asked yet; the same command starts again"
        self._reason = ""
        self._is_answering = False
        self._heard = _SIGNALS

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals in this block. An inherited choice to ignore SIGHUP, as nohup makes it, is kept.

        Raises:
            Stopped: In the main thread, at the first signal before `answering`; later from `check`.
        """
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        is_nohup = handlers[signal.SIGHUP] == signal.SIG_IGN
        self._heard = tuple(number for number in _SIGNALS if not (is_nohup and number == signal.SIGHUP))
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in self._heard:
            signal.signal(number, self._handle)
        threading.Thread(target=self._hear, args=(reader,), daemon=True, name="signals").start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            os.close(writer)
            for number, handler in handlers.items():
                signal.signal(number, handler)

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
        """Raise Stopped if the request is made."""
        if self.is_made:
            raise Stopped(self._reason)

    def _handle(self, number: int, _: object) -> None:
        # In the main thread. A signal that comes again must not interrupt the clean-up after the first one.
        if self.is_made:
            return
        self._reason, self.exit_code = _reason_and_code(number)
        self.is_made = True
        if not self._is_answering:
            raise Stopped(self._reason)

    def _hear(self, reader: int) -> None:
        first_at: float | None = None
        # Until the writer is closed.
        while received := os.read(reader, 1):
            number = received[0]
            if number not in self._heard:
                continue
            if first_at is None:
                first_at = time.monotonic()
                reason, code = _reason_and_code(number)
                if self._is_answering:
                    say(f"\n{reason}: keeping the answers that have come; a second signal stops at once")
                late = f"{reason}; ended before all was kept, because that took over {_WITHIN_SECONDS:g} s"
                timer = threading.Timer(_WITHIN_SECONDS, self._end, args=(late, code))
                timer.daemon = True
                timer.start()
            # A closing terminal sends SIGHUP several times: the kernel, the shell and ssh each do.
            elif number != signal.SIGHUP and time.monotonic() - first_at > _SAME_SIGNAL_SECONDS:
                self._end(f"stopped at once by a second signal ({signal.Signals(number).name})", code)

    def _end(self, reason: str, exit_code: int) -> None:
        """End this process from any thread, even if the main thread is stuck."""
        say(f"{reason}; {self.outlook()}")
        os._exit(exit_code)


def _reason_and_code(number: int) -> tuple[str, int]:
    return f"stopped by {signal.Signals(number).name}", EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_REQUEUE


STOP = StopRequest()
