"""How much each dataset of a mixture is drawn: by its given weight, or more if its groups still teach the task."""

from collections.abc import Mapping
from typing import Any

from rgtrain.errors import ConfigError


class FixedWeights:
    """The weights of the configuration."""

    def __init__(self, weights: Mapping[str, float]):
        self._weights = dict(weights)

    def now(self) -> dict[str, float]:
        """Each dataset's weight; they need not sum to 1."""
        return dict(self._weights)

    def observe(self, dataset: str, *, has_signal: bool) -> None:
        """Take in whether a group of `dataset` had a signal (`rgtrain.curriculum.curriculum.has_signal`)."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class AdaptiveWeights(FixedWeights):
    """The configuration's weight times the share of a dataset's latest groups with a signal, against the mean share.

    The factor stays within [`least`, `most`]. The share is a mean over about `memory` groups, from 1/2 at the start.
    """

    def __init__(self, weights: Mapping[str, float], *, least: float = 0.25, most: float = 4.0, memory: float = 64):
        super().__init__(weights)
        if not 0 < least <= 1 <= most:
            raise ConfigError(
                f"adaptive weights lie between {least} and {most} times the given: give least <= 1 <= most"
            )
        if memory < 1:
            raise ConfigError(f"adaptive weights remember {memory} groups: give a number from 1 up")
        self._least, self._most, self._memory = least, most, memory
        self._shares = dict.fromkeys(weights, 0.5)

    def now(self) -> dict[str, float]:
        mean = sum(self._shares.values()) / len(self._shares)
        return {name: weight * self._factor(self._shares[name], mean) for name, weight in self._weights.items()}

    def _factor(self, share: float, mean: float) -> float:
        return 1.0 if mean == 0 else min(self._most, max(self._least, share / mean))

    def observe(self, dataset: str, *, has_signal: bool) -> None:
        self._shares[dataset] += (has_signal - self._shares[dataset]) / self._memory

    def state_dict(self) -> dict[str, Any]:
        return {"shares": dict(self._shares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._shares = dict(state["shares"])
