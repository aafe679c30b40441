"""Weights by which the datasets of a mixture are drawn: fixed, or higher for datasets with a learning signal."""

from collections.abc import Mapping
from typing import Any

from rgtrain.errors import ConfigError


class FixedWeights:
    """Weights that stay as configured.

    Args:
        weights: The configured weight of each dataset.
    """

    def __init__(self, weights: Mapping[str, float]):
        self._weights = dict(weights)

    def now(self) -> dict[str, float]:
        """Return the current weight of each dataset; the weights need not sum to 1."""
        return dict(self._weights)

    def observe(self, dataset: str, *, has_signal: bool) -> None:
        """Update the weights by whether a group of `dataset` had a signal, as `has_signal` defines it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON-compatible values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""


class AdaptiveWeights(FixedWeights):
    """Weights that rise for datasets with an above-average share of groups with a learning signal.

    The configured weight is multiplied by a factor, the dataset's share of such groups relative to the mean share of
    all datasets. The share is an exponential moving average that starts at 1/2.

    Args:
        weights: The configured weight of each dataset.
        least: Lower limit of the factor, above 0 and at most 1.
        most: Upper limit of the factor, at least 1.
        memory: Number of groups that the moving average covers.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(self, weights: Mapping[str, float], *, least: float = 0.25, most: float = 4.0, memory: float = 64):
        super().__init__(weights)
        if not 0 < least <= 1 <= most:
            raise ConfigError(f"adaptive weights have least {least} and most {most}; give 0 < least <= 1 <= most")
        if memory < 1:
            raise ConfigError(f"adaptive weights have memory {memory}; give a number of at least 1")
        self._least, self._most, self._memory = least, most, memory
        self._shares = dict.fromkeys(weights, 0.5)

    def now(self) -> dict[str, float]:
        """Return the current weight of each dataset."""
        mean = sum(self._shares.values()) / len(self._shares)
        return {name: weight * self._factor(self._shares[name], mean) for name, weight in self._weights.items()}

    def _factor(self, share: float, mean: float) -> float:
        return 1.0 if mean == 0 else min(self._most, max(self._least, share / mean))

    def observe(self, dataset: str, *, has_signal: bool) -> None:
        """Update the share of `dataset` by whether a group had a signal."""
        self._shares[dataset] += (has_signal - self._shares[dataset]) / self._memory

    def state_dict(self) -> dict[str, Any]:
        """Return the share of each dataset."""
        return {"shares": dict(self._shares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self._shares = dict(state["shares"])
