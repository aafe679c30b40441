"""How far an evaluation is, on stderr."""

import sys
from types import TracebackType

from tqdm import tqdm

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} answers, {rate_noinv_fmt}{postfix}, {remaining} left"
# A log file gets a line now and then, a terminal a bar that moves.
_SECONDS_BETWEEN_LOG_LINES = 10.0


class Progress:
    """A bar with answers and tokens a second and the time left. Answers of an earlier run are no part of the speed."""

    def __init__(self, *, total: int, done: int):
        on_terminal = sys.stderr.isatty()
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

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def tokens_per_second(self) -> float:
        """Of the completions generated in this run."""
        elapsed = self._bar.format_dict["elapsed"]
        return self._num_tokens / elapsed if elapsed else 0.0

    def add(self, *, num_tokens: int) -> None:
        """One more answer of `num_tokens` tokens."""
        self._num_tokens += num_tokens
        self._bar.set_postfix_str(f"{self.tokens_per_second:.0f} tokens/s", refresh=False)
        self._bar.update()
