"""Which level of a dataset to draw, decided by the answers so far. Each policy is small, pure, and can be saved.

An answer's success is a number in [0, 1]. A policy of one's own is named `pkg://package.module.Class` in the
configuration; it is called with `num_levels` and its options, and has the three methods of `Policy`.
"""

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from rgtrain.errors import ConfigError


class Policy(Protocol):
    """Draws levels from 0 (easiest) to num_levels - 1."""

    def draw(self, rng: random.Random) -> int:
        """The level of the next problem. All randomness comes from `rng`."""

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Take in one group's answers to a problem drawn at `level`."""

    def state_dict(self) -> dict[str, Any]:
        """All that later draws depend on, as JSON can hold it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, by short names."""


class Threshold:
    """One level at a time, as published (arXiv 2505.24760, sec. 6).

    Up where the mean of the last `window` answers at the level is above `raise_above`, down where it is below
    `lower_below`; the window starts anew after each move.
    """

    def __init__(self, *, num_levels: int, window: int = 20, raise_above: float = 0.7, lower_below: float = 0.1):
        if not 0 <= lower_below < raise_above <= 1:
            raise ConfigError(
                f"threshold raises above {raise_above} and lowers below {lower_below}: "
                "give numbers from 0 to 1, the second below the first"
            )
        _check_at_least("threshold", "window", window, 1)
        self.num_levels = num_levels
        self.raise_above = raise_above
        self.lower_below = lower_below
        self.window = window
        self.level = 0
        self._answers: deque[float] = deque(maxlen=window)

    def draw(self, rng: random.Random) -> int:
        return self.level

    def observe(self, level: int, successes: Sequence[float]) -> None:
        if level != self.level:
            # Drawn before the last move: it says nothing of the level now.
            return
        self._answers.extend(successes)
        if len(self._answers) < self.window:
            return
        mean = sum(self._answers) / len(self._answers)
        step = (mean > self.raise_above) - (mean < self.lower_below)
        if 0 <= self.level + step < self.num_levels and step:
            self.level += step
            self._answers.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "answers": list(self._answers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]
        self._answers.clear()
        self._answers.extend(state["answers"])

    def metrics(self) -> dict[str, float]:
        return {"level": self.level}


class Frontier:
    """Levels where the model succeeds about half of the time, where a group's answers differ most.

    Each level has a Beta posterior of its success, whose evidence fades by `memory` (in answers at that level): the
    model changes. A draw takes a success from the posterior of every open level (Thompson sampling) and the level whose
    success s has the largest s (1 - s); a share of `replay` goes to the open levels evenly, so that what has been
    mastered stays. The next level opens once the highest open one's expected success is above `open_above`.
    """

    def __init__(self, *, num_levels: int, replay: float = 0.05, open_above: float = 0.5, memory: float = 128):
        for name, value in (("replay", replay), ("open_above", open_above)):
            if not 0 <= value <= 1:
                raise ConfigError(f"frontier's {name} is {value}: give a number from 0 to 1")
        _check_at_least("frontier", "memory", memory, 1)
        self.num_levels = num_levels
        self.replay = replay
        self.open_above = open_above
        self.memory = memory
        self.num_open = 1
        self._solved = [0.0] * num_levels
        self._failed = [0.0] * num_levels

    def draw(self, rng: random.Random) -> int:
        if rng.random() < self.replay:
            return rng.randrange(self.num_open)
        sampled = [rng.betavariate(*self._posterior(level)) for level in range(self.num_open)]
        return max(range(self.num_open), key=lambda level: sampled[level] * (1 - sampled[level]))

    def observe(self, level: int, successes: Sequence[float]) -> None:
        keep = max(0.0, 1 - len(successes) / self.memory)
        self._solved[level] = keep * self._solved[level] + sum(successes)
        self._failed[level] = keep * self._failed[level] + len(successes) - sum(successes)
        if self.num_open < self.num_levels and self.expected(self.num_open - 1) > self.open_above:
            self.num_open += 1

    def expected(self, level: int) -> float:
        """The mean of the level's posterior."""
        solved, failed = self._posterior(level)
        return solved / (solved + failed)

    def _posterior(self, level: int) -> tuple[float, float]:
        # Uniform before any answer.
        return 1 + self._solved[level], 1 + self._failed[level]

    def state_dict(self) -> dict[str, Any]:
        return {"num_open": self.num_open, "solved": list(self._solved), "failed": list(self._failed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_open, self._solved, self._failed = state["num_open"], list(state["solved"]), list(state["failed"])

    def metrics(self) -> dict[str, float]:
        best = max(range(self.num_open), key=lambda level: self.expected(level) * (1 - self.expected(level)))
        return {"level": best, "num_open": self.num_open}


class Uniform:
    """All levels alike, whatever comes back: the control."""

    def __init__(self, *, num_levels: int):
        self.num_levels = num_levels

    def draw(self, rng: random.Random) -> int:
        return rng.randrange(self.num_levels)

    def observe(self, level: int, successes: Sequence[float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}


def _check_at_least(policy: str, name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ConfigError(f"{policy}'s {name} is {value!r}: give a number from {least} up")
