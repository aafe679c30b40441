"""Policies that choose the level of the next problem by the scores of earlier answers.

The success of an answer is a number in [0, 1]. A configuration can name your own policy as `pkg://package.module.Class`.
The class takes `num_levels` and its options as arguments and implements `Policy`.
"""

import math
import random
from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any, Protocol

from rgtrain.errors import ConfigError


class Policy(Protocol):
    """Draws levels from 0 (easiest) to num_levels - 1."""

    def draw(self, rng: random.Random) -> int:
        """Return the level of the next problem. All randomness comes from `rng`."""

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Update the policy with the successes of one group at `level`."""

    def end_step(self) -> None:
        """Update the policy after all groups of a training step were observed."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later draws depend on, as JSON-compatible values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""

    def metrics(self) -> dict[str, float]:
        """Return values for the log by short names."""


class Threshold:
    """Draws one level at a time, as published (arXiv 2505.24760, sec. 6).

    After each training step, the level depends on the mean success of the last `window` answers at the current level.
    Above `raise_above` it goes up, below `lower_below` it goes down. Then the window is cleared, also at the first and
    the last level. A step can have more answers than the window, and then only its last answers count.

    Args:
        num_levels: Number of levels.
        window: Number of answers.
        raise_above: Threshold in [0, 1].
        lower_below: Threshold in [0, 1], below `raise_above`.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(self, *, num_levels: int, window: int = 20, raise_above: float = 0.7, lower_below: float = 0.1):
        if not 0 <= lower_below < raise_above <= 1:
            raise ConfigError(
                f"threshold's raise_above is {raise_above} and its lower_below {lower_below}; "
                "give numbers from 0 to 1, with lower_below less than raise_above"
            )
        _check_at_least("threshold", "window", window, 1)
        self.num_levels = num_levels
        self.raise_above = raise_above
        self.lower_below = lower_below
        self.window = window
        self.level = 0
        self._answers: deque[float] = deque(maxlen=window)

    def draw(self, rng: random.Random) -> int:
        """Return the current level."""
        return self.level

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Add one group's successes to the window."""
        # Problems of other levels were drawn before the last change of level.
        if level == self.level:
            self._answers.extend(successes)

    def end_step(self) -> None:
        """Change the level if the window is full and its mean passes a threshold."""
        if len(self._answers) < self.window:
            return
        mean = sum(self._answers) / len(self._answers)
        if change := (mean > self.raise_above) - (mean < self.lower_below):
            self.level = min(max(self.level + change, 0), self.num_levels - 1)
            self._answers.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the level and the window."""
        return {"level": self.level, "answers": list(self._answers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.level = state["level"]
        self._answers.clear()
        self._answers.extend(state["answers"])

    def metrics(self) -> dict[str, float]:
        """Return the current level."""
        return {"level": self.level}


class Frontier:
    """Prefers levels with a success rate near 1/2, because the answers of a group differ most there.

    Each level has a Beta posterior of its success rate. Old evidence decays because the model changes. A draw samples a
    success rate s from the posterior of every open level (Thompson sampling) and returns the level with the largest
    s (1 - s).

    Args:
        num_levels: Number of levels; only the first is open at the start.
        replay: Share of draws that are uniform over the open levels, so that the model retains easier levels.
        open_above: The next level opens when the expected success rate of the highest open level exceeds this.
        memory: Number of answers at a level over which evidence decays.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(self, *, num_levels: int, replay: float = 0.05, open_above: float = 0.5, memory: float = 128):
        for name, value in (("replay", replay), ("open_above", open_above)):
            if not 0 <= value <= 1:
                raise ConfigError(f"frontier's {name} is {value}; give a number from 0 to 1")
        _check_at_least("frontier", "memory", memory, 1)
        self.num_levels = num_levels
        self.replay = replay
        self.open_above = open_above
        self.memory = memory
        self.num_open = 1
        self._solved = [0.0] * num_levels
        self._failed = [0.0] * num_levels

    def draw(self, rng: random.Random) -> int:
        """Return a level by Thompson sampling, or a uniform one for replay."""
        if rng.random() < self.replay:
            return rng.randrange(self.num_open)
        sampled = [rng.betavariate(*self._posterior(level)) for level in range(self.num_open)]
        return max(range(self.num_open), key=lambda level: sampled[level] * (1 - sampled[level]))

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Update the posterior of `level` with one group's successes, and open the next level if it is due."""
        keep = max(0.0, 1 - len(successes) / self.memory)
        self._solved[level] = keep * self._solved[level] + sum(successes)
        self._failed[level] = keep * self._failed[level] + len(successes) - sum(successes)
        if self.num_open < self.num_levels and self.expected(self.num_open - 1) > self.open_above:
            self.num_open += 1

    def end_step(self) -> None:
        """Do nothing, because each group has its effect at once."""

    def expected(self, level: int) -> float:
        """Return the mean of the posterior of the level's success rate."""
        solved, failed = self._posterior(level)
        return solved / (solved + failed)

    def _posterior(self, level: int) -> tuple[float, float]:
        # The prior is uniform.
        return 1 + self._solved[level], 1 + self._failed[level]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of open levels and the evidence for each level."""
        return {"num_open": self.num_open, "solved": list(self._solved), "failed": list(self._failed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.num_open, self._solved, self._failed = state["num_open"], list(state["solved"]), list(state["failed"])

    def metrics(self) -> dict[str, float]:
        """Return the level whose expected success rate is nearest to 1/2 and the number of open levels."""
        best = max(range(self.num_open), key=lambda level: self.expected(level) * (1 - self.expected(level)))
        return {"level": best, "num_open": self.num_open}


class Bandit:
    """Prefers levels whose groups have large advantages, as Self-Evolving Curriculum does (arXiv 2505.14970).

    The pay-off of a group is the mean absolute advantage of its answers, |s - mean| / standard deviation, and 0 if all
    successes s are equal. With a share p of right answers, it is 2 sqrt(p (1 - p)). After each step, the value Q of
    each level that was drawn moves to the mean pay-off r of its groups: Q <- Q + alpha (r - Q). Levels are drawn with
    probabilities proportional to exp(Q / temperature), and all values begin at 0.

    Args:
        num_levels: Number of levels.
        alpha: Share of the latest step in a level's value, in (0, 1].
        temperature: At least 0.01. The paper uses 0.2 to 1. A smaller one prefers the best level more.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(self, *, num_levels: int, alpha: float = 0.5, temperature: float = 0.2):
        if not 0 < alpha <= 1:
            raise ConfigError(f"bandit's alpha is {alpha}; give a number above 0 and up to 1")
        # Smaller ones overflow the exponential.
        _check_at_least("bandit", "temperature", temperature, 0.01)
        self.num_levels = num_levels
        self.alpha = alpha
        self.temperature = temperature
        self.values = [0.0] * num_levels
        self._pay_offs: defaultdict[int, list[float]] = defaultdict(list)

    def draw(self, rng: random.Random) -> int:
        """Return a level from the softmax of the values."""
        weights = [math.exp(value / self.temperature) for value in self.values]
        return rng.choices(range(self.num_levels), weights=weights)[0]

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Keep one group's pay-off until the end of the step."""
        mean, deviation = fmean(successes), pstdev(successes)
        pay_off = fmean(abs(success - mean) / deviation for success in successes) if deviation else 0.0
        self._pay_offs[level].append(pay_off)

    def end_step(self) -> None:
        """Move the value of each level that was drawn towards the mean pay-off of its groups."""
        for level, pay_offs in self._pay_offs.items():
            self.values[level] += self.alpha * (fmean(pay_offs) - self.values[level])
        self._pay_offs.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the values and the pay-offs of the present step."""
        return {"values": list(self.values), "pay_offs": [list(pair) for pair in self._pay_offs.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.values = list(state["values"])
        # JSON has no mapping with numbers as keys.
        self._pay_offs = defaultdict(list, {level: list(pay_offs) for level, pay_offs in state["pay_offs"]})

    def metrics(self) -> dict[str, float]:
        """Return the level with the highest value, and the value of each level."""
        best = max(range(self.num_levels), key=lambda level: self.values[level])
        return {"level": best, **{f"value_of_level_{level}": value for level, value in enumerate(self.values)}}


class Uniform:
    """Draws all levels uniformly and ignores the answers, as a control."""

    def __init__(self, *, num_levels: int):
        self.num_levels = num_levels

    def draw(self, rng: random.Random) -> int:
        """Return a uniform level."""
        return rng.randrange(self.num_levels)

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Ignore the group."""

    def end_step(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the empty state."""

    def metrics(self) -> dict[str, float]:
        """Return no metrics."""
        return {}


def _check_at_least(policy: str, name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ConfigError(f"{policy}'s {name} is {value!r}; give a number of at least {least}")
