"""A curriculum policy. An experiment names it as `pkg://my_tasks.policies.Climb`."""

import random
from collections.abc import Sequence
from typing import Any


class Climb:
    """Move one level up after `patience` groups whose mean score is at least `goal`."""

    def __init__(self, *, num_levels: int, patience: int = 10, goal: float = 1.0):
        self.num_levels, self.patience, self.goal = num_levels, patience, goal
        self.level = self.solved = 0

    def draw(self, rng: random.Random) -> int:
        """Return the level of the next training problem."""
        return self.level

    def observe(self, level: int, successes: Sequence[float]) -> None:
        """Take in the scores of the completions of one problem."""
        self.solved += level == self.level and sum(successes) >= self.goal * len(successes)
        if self.solved >= self.patience and self.level + 1 < self.num_levels:
            self.level, self.solved = self.level + 1, 0

    def end_step(self) -> None:
        """Called after all groups of a training step; nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is saved in checkpoints, as JSON-compatible values."""
        return {"level": self.level, "solved": self.solved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.level, self.solved = state["level"], state["solved"]

    def metrics(self) -> dict[str, float]:
        """Return metrics, which are logged as `curriculum/DATASET/NAME`."""
        return {"level": self.level}
