"""The progress bar of an evaluation on stderr, and its heartbeat for the watchdog."""

import os
import sys
from types import TracebackType
from typing import TextIO

from rgtrain.jobs.activity import Activity

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} answers, {rate_noinv_fmt}{postfix}, {remaining} left"
# A log file gets an occasional line, while a terminal gets a moving bar.
_SECONDS_BETWEEN_LOG_LINES = 10.0

ACTIVITY = Activity()


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line immediately. If the terminal is gone, discard this line and all later ones.

    Args:
        line: The text.
        file: The stream; None for standard output.
    """
    file = file or sys.stdout
    try:
        print(line, file=file, flush=True)
    except OSError:
        _discard(file)


def _discard(file: TextIO) -> None:
    # At exit, Python would write the buffered text again, fail, and change the exit code.
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class EvaluationProgress:
    """A progress bar with answers and tokens per second and the remaining time.

    Answers of an earlier run count as done but don't enter the speed.
    """

    def __init__(self, *, total: int, done: int):
        from tqdm import tqdm

        on_terminal = sys.stderr.isatty()
        self._total = total
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="answer",
            smoothing=0,
            dynamic_ncols=on_terminal,
            mininterval=0.1 if on_terminal else _SECONDS_BETWEEN_LOG_LINES,
            bar_format=_BAR,
        )
        # None as soon as the length of an answer is unknown.
        self._num_tokens: int | None = 0

    def __enter__(self) -> "EvaluationProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._bar.close()
        except OSError:
            _discard(sys.stderr)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens generated per second in this run; None if the length of an answer is unknown."""
        elapsed = self._bar.format_dict["elapsed"]
        if self._num_tokens is None:
            return None
        return self._num_tokens / elapsed if elapsed else 0.0

    def add(self, *, num_tokens: int | None) -> None:
        """Count an answer of `num_tokens` tokens; None if its length is unknown."""
        self._num_tokens = None if self._num_tokens is None or num_tokens is None else self._num_tokens + num_tokens
        speed = self.tokens_per_second
        self._bar.set_postfix_str("unknown tokens/s" if speed is None else f"{speed:.0f} tokens/s", refresh=False)
        try:
            self._bar.update()
        except OSError:
            _discard(sys.stderr)
        ACTIVITY.moved(f"answer {self._bar.n} of {self._total}")
