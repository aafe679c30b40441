"""How far an evaluation is, on stderr, and signs of life for the watchdog."""

import os
import sys
from types import TracebackType
from typing import TextIO

from rgtrain.jobs.activity import Activity

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} answers, {rate_noinv_fmt}{postfix}, {remaining} left"
# A log file gets a line now and then, a terminal a bar that moves.
_SECONDS_BETWEEN_LOG_LINES = 10.0

ACTIVITY = Activity()


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line at once. If the terminal is gone, the evaluation goes on without it.

    Args:
        line: The text.
        file: Where to; standard output if None.
    """
    file = file or sys.stdout
    try:
        print(line, file=file, flush=True)
    except OSError:
        _discard(file)


def _discard(file: TextIO) -> None:
    # Python would try to write again at its exit, fail, and exit with another code.
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class EvaluationProgress:
    """A bar with answers and tokens a second and the time left. Answers of an earlier run are no part of the speed."""

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
        self._num_tokens = 0

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
    def tokens_per_second(self) -> float:
        """Of the completions generated in this run."""
        elapsed = self._bar.format_dict["elapsed"]
        return self._num_tokens / elapsed if elapsed else 0.0

    def add(self, *, num_tokens: int) -> None:
        """Count one more answer of `num_tokens` tokens."""
        self._num_tokens += num_tokens
        self._bar.set_postfix_str(f"{self.tokens_per_second:.0f} tokens/s", refresh=False)
        try:
            self._bar.update()
        except OSError:
            _discard(sys.stderr)
        ACTIVITY.moved(f"answer {self._bar.n} of {self._total}")
