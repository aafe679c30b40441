"""Receive the signals that ask a job to stop, even while its main thread is stuck in a library, or forward them."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import RawIOBase

# EX_TEMPFAIL, "try again later": schedulers can be configured to requeue on it.
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 128 + signal.SIGINT
# A terminal that closes, such as that of an ssh session, sends SIGHUP.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One Ctrl-C, or one SIGTERM to a whole job, can reach a process twice: directly and through its parent.
_SAME_SIGNAL_SECONDS = 1.0


def accepted_signals() -> tuple[signal.Signals, ...]:
    """Return STOP_SIGNALS, without SIGHUP if this process ignores it, for example because nohup started it."""
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (is_nohup and number == signal.SIGHUP))


@contextmanager
def received(
    numbers: Sequence[signal.Signals], handle: Callable[[int, object], None]
) -> Iterator[Iterator[signal.Signals]]:
    """Receive signals for the duration of the block, and restore the previous handlers afterwards.

    Args:
        numbers: The signals to receive, see `accepted_signals`.
        handle: Called in the main thread for each signal, as soon as that thread runs Python code.

    Yields:
        An iterator over the signals as they arrive, for use in another thread. It ends with the block.
    """
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    reader, writer = os.pipe()
    # Held here too, so that the pipe stays open even if no thread reads it.
    pipe = os.fdopen(reader, "rb", buffering=0)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield _arrivals(pipe, numbers)
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _arrivals(pipe: RawIOBase, numbers: Sequence[signal.Signals]) -> Iterator[signal.Signals]:
    with pipe:
        # Ends when the block closes the writer.
        while content := pipe.read(1):
            if content[0] in numbers:
                yield signal.Signals(content[0])


def is_second_request(number: signal.Signals, *, seconds_since_first: float) -> bool:
    """Return whether a signal is a second request to stop, rather than a repetition of the first.

    SIGHUP is never a second request, because a closing terminal sends it several times. The kernel, the shell and ssh
    each send one.

    Args:
        number: The signal that arrived.
        seconds_since_first: The time since the first signal that asked the job to stop.

    Returns:
        Whether the job should stop at once.
    """
    return number != signal.SIGHUP and seconds_since_first > _SAME_SIGNAL_SECONDS


def exit_code_of(number: int) -> int:
    """Return the exit code of a job that the signal `number` has stopped."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_REQUEUE


class CommandRunner:
    """Run commands one after another and forward the stop signals to the current one, which saves its work.

    Attributes:
        stopped_by: The first stop signal that arrived, or None.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def listening(self) -> Iterator["CommandRunner"]:
        """Receive the signals in this block. If nohup ignores SIGHUP, it stays ignored.

        Yields:
            This object.
        """
        before = {number: signal.signal(number, self._forward) for number in accepted_signals()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Run a command to its end.

        Args:
            command: The program and its arguments.

        Returns:
            The exit code as in a shell, which is 128 plus the number of the signal that ended a process.
        """
        self._process = subprocess.Popen(command)
        if self.stopped_by is not None:
            # The signal arrived while the process was being started.
            self._process.send_signal(self.stopped_by)
        code = self._process.wait()
        self._process = None
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _: object) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(number)
