"""Memory that a worker shares with the pool, with the results of a batch. They survive if the worker is killed.

The pool also reads which answer is being judged and since when, so that it detects a worker that hangs. A worker runs
untrusted text, so the pool does not trust the values. They are stored in arrays for speed, because the pool handles
thousands of answers per second.
"""

import fcntl
import itertools
import math
import mmap
import os
import re
import time
from collections.abc import Sequence

from rgtrain.problems.scoring.score import Score

CAPACITY = 256
# Number of values of own reward functions in a batch.
MAX_VALUES = 8192
_NAME_BYTES = 40
_MESSAGE_BYTES = 200
_DOUBLES = 8 * CAPACITY
_RUNNING, _ACCURACIES, _SECONDS, _VALUES, _STATUSES, _NAMES, _MESSAGES, _SIZE = itertools.accumulate(
    (0, 64, _DOUBLES, _DOUBLES, 8 * MAX_VALUES, CAPACITY, _NAME_BYTES * CAPACITY, _MESSAGE_BYTES * CAPACITY)
)
_PENDING, _JUDGED, _RAISED, _MEMORY = range(4)


class ResultTable:
    """Scores of a batch of at most `CAPACITY` answers by position.

    Args:
        fd: File descriptor of an existing table; by default a new table is created.
    """

    def __init__(self, fd: int | None = None):
        self.fd = _sealed_memory() if fd is None else fd
        self._memory = mmap.mmap(self.fd, _SIZE)
        view = memoryview(self._memory)
        self._running = view[_RUNNING : _RUNNING + 16].cast("d")
        self._accuracies = view[_ACCURACIES:_SECONDS].cast("d")
        self._seconds = view[_SECONDS:_VALUES].cast("d")
        self._values = view[_VALUES:_STATUSES].cast("d")
        self._statuses = view[_STATUSES:_NAMES]
        self._views = (view, self._running, self._accuracies, self._seconds, self._values, self._statuses)

    def clear(self) -> None:
        """Remove the scores of the last batch."""
        self._statuses[:] = bytes(CAPACITY)
        self._running[0] = -1.0

    def begin(self, position: int) -> float:
        """Record that `position` is being judged, and return the current time of the monotonic clock."""
        self._running[1] = now = time.monotonic()
        self._running[0] = position
        return now

    def judged(self, position: int, accuracy: float, seconds: float) -> None:
        """Record a score."""
        self._accuracies[position] = accuracy
        self._seconds[position] = seconds
        self._statuses[position] = _JUDGED

    def rewarded(self, position: int, values: Sequence[float], seconds: float) -> None:
        """Record the values of a reward function. All positions of a batch have the same number of values."""
        for number, value in enumerate(values, start=position * len(values)):
            self._values[number] = value
        self._seconds[position] = seconds
        self._statuses[position] = _JUDGED

    def raised(self, position: int, error: BaseException, seconds: float, *, message: str = "") -> None:
        """Record that judging raised `error`, with a message for a reward function."""
        text = message[:_MESSAGE_BYTES].encode("ascii", "replace").ljust(_MESSAGE_BYTES, b"\0")
        self._memory[_MESSAGES + position * _MESSAGE_BYTES : _MESSAGES + (position + 1) * _MESSAGE_BYTES] = text
        name = type(error).__name__.encode("ascii", "replace")[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
        self._memory[_NAMES + position * _NAME_BYTES : _NAMES + (position + 1) * _NAME_BYTES] = name
        self._seconds[position] = seconds
        self._statuses[position] = _MEMORY if isinstance(error, MemoryError) else _RAISED

    def running(self) -> tuple[float, float]:
        """Return the position that is being judged (-1 if none) and its start time, as written by the worker."""
        return self._running[0], self._running[1]

    def scores(self, num_answers: int, *, elapsed_s: float) -> list[Score | None]:
        """Return the scores of the batch.

        Args:
            num_answers: Number of answers in the batch.
            elapsed_s: Time since the batch was assigned, which limits the seconds of a score.

        Returns:
            The scores in order, or None for an answer that is not judged yet.
        """
        statuses = bytes(self._statuses[:num_answers])
        accuracies = self._accuracies[:num_answers].tolist()
        seconds = [second if 0.0 <= second <= elapsed_s else elapsed_s for second in self._seconds[:num_answers]]
        scores: list[Score | None] = list(map(Score, accuracies, itertools.repeat(None), seconds))
        if statuses.count(_JUDGED) < num_answers or not all([0.0 <= accuracy <= 1.0 for accuracy in accuracies]):
            for position, (status, accuracy) in enumerate(zip(statuses, accuracies, strict=True)):
                if status != _JUDGED or not 0.0 <= accuracy <= 1.0:
                    scores[position] = self._failed(position, status, seconds[position])
        return scores

    def reward_scores(self, num_calls: int, num_values: int, *, elapsed_s: float) -> list[Score | None]:
        """Return the results of calls of a reward function with `num_values` values each, as `scores` does."""
        results: list[Score | None] = []
        for position in range(num_calls):
            status, second = self._statuses[position], self._seconds[position]
            seconds = second if 0.0 <= second <= elapsed_s else elapsed_s
            values = tuple(self._values[position * num_values : (position + 1) * num_values])
            if status == _JUDGED and all(map(math.isfinite, values)):
                results.append(Score(0.0, None, seconds, values))
                continue
            failed = self._failed(position, status, seconds)
            start = _MESSAGES + position * _MESSAGE_BYTES
            content = self._memory[start : start + _MESSAGE_BYTES] if status == _RAISED else b""
            message = re.sub(r"[^ -~]", "?", content.rstrip(b"\0").decode("ascii", "replace"))
            results.append(failed and failed._replace(message=message))
        return results

    def _failed(self, position: int, status: int, seconds: float) -> Score | None:
        if status == _PENDING:
            return None
        if status == _MEMORY:
            return Score(0.0, "memory", seconds)
        if status != _RAISED:
            return Score(0.0, "exception: impossible score", seconds)
        name = self._memory[_NAMES + position * _NAME_BYTES : _NAMES + (position + 1) * _NAME_BYTES]
        word = re.sub(r"\W", "?", name.rstrip(b"\0").decode("ascii", "replace"))
        return Score(0.0, f"exception: {word}", seconds)

    def close(self) -> None:
        """Unmap the memory in this process."""
        for view in self._views:
            view.release()
        self._memory.close()
        os.close(self.fd)


def _sealed_memory() -> int:
    fd = os.memfd_create("rgtrain-scores", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, _SIZE)
    # Seal the size; otherwise a worker could grow the memory beyond its limit.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd
