"""Choose the dataset and level of each training problem, based on the scores of earlier groups."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rgtrain.curriculum.ladder import Ladder
from rgtrain.curriculum.policies import Policy
from rgtrain.curriculum.weights import FixedWeights
from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import Choice, DatasetSpec


@dataclass(frozen=True)
class GroupResult:
    """A rollout group of training: the dataset and level of its problem, and the score and reward of each response."""

    dataset: str
    level: int | None
    scores: Sequence[float]
    rewards: Sequence[float]


def has_signal(scores: Iterable[float], rewards: Iterable[float]) -> bool:
    """Return whether the responses of a group differ both in score and in reward.

    Different rewards alone do not show that a group teaches the task, because with a length penalty nearly every group
    has them. Different scores alone are not enough either, because some rewards ignore partial credit.

    Args:
        scores: The score of each response, in [0, 1].
        rewards: The reward of each response.

    Returns:
        Whether the group has a learning signal.
    """
    return len(set(scores)) > 1 and len(set(rewards)) > 1


class Curriculum:
    """Draws the dataset and level of each training problem.

    A draw depends only on the seed, the index and the state, so a resumed run draws the same problems.

    Args:
        specs: The datasets of the mixture. One without a ladder is drawn with its own parameters.
        seed: The run's seed.
        weights: Weights by which datasets are drawn.
        ladders: Levels by dataset.
        policies: Policies by dataset, for the same datasets as `ladders`.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        seed: int,
        weights: FixedWeights,
        ladders: Mapping[str, Ladder] | None = None,
        policies: Mapping[str, Policy] | None = None,
    ):
        self.ladders = dict(ladders or {})
        self.policies = dict(policies or {})
        self.weights = weights
        self._specs = {spec.name: spec for spec in specs}
        self._seed = seed
        self._latest: dict[tuple[str, int], list[float]] = {}

    def level_specs(self) -> dict[str, list[DatasetSpec]]:
        """Return the specs of all levels of each dataset that has levels."""
        return {
            name: [replace(self._specs[name], params=params) for params in ladder.levels]
            for name, ladder in self.ladders.items()
        }

    def choose_any_level(self, index: int) -> Choice:
        """Choose a dataset by its configured weight and a level uniformly, independent of the state, for validation."""
        rng = random.Random(f"{self._seed}/{index}")
        spec = rng.choices(list(self._specs.values()), weights=[spec.weight for spec in self._specs.values()])[0]
        if spec.name not in self.ladders:
            return Choice(spec)
        return self._at_level(spec.name, rng.randrange(len(self.ladders[spec.name])))

    def choose(self, index: int) -> Choice:
        """Choose the dataset and level of training problem `index` by the current state."""
        rng = random.Random(f"{self._seed}/{index}")
        weights = self.weights.now()
        name = rng.choices(list(self._specs), weights=[weights[name] for name in self._specs])[0]
        if name not in self.policies:
            return Choice(self._specs[name])
        return self._at_level(name, self.policies[name].draw(rng))

    def _at_level(self, name: str, level: int) -> Choice:
        num_levels = len(self.ladders[name])
        # A negative level would silently be one counted from the last.
        if not 0 <= level < num_levels:
            policy = type(self.policies[name]).__name__
            raise ConfigError(
                f"the curriculum policy {policy} drew level {level} of dataset {name!r}; let it draw levels from 0 to "
                f"{num_levels - 1}"
            )
        return Choice(replace(self._specs[name], params=self.ladders[name].levels[level]), level)

    def observe(self, groups: Iterable[GroupResult]) -> None:
        """Update policies and weights with the groups of a training step."""
        latest: dict[tuple[str, int], list[float]] = defaultdict(list)
        for group in groups:
            self.weights.observe(group.dataset, has_signal=has_signal(group.scores, group.rewards))
            if group.level is not None:
                self.policies[group.dataset].observe(group.level, group.scores)
                latest[group.dataset, group.level] += group.scores
        for policy in self.policies.values():
            policy.end_step()
        self._latest = dict(latest)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of each dataset.

        Returns:
            `curriculum/DATASET/...` for the metrics of its policy, its mean score by level in the last step, and its
            share of draws.
        """
        metrics: dict[str, float] = {}
        for name, policy in self.policies.items():
            metrics |= {f"curriculum/{name}/{key}": value for key, value in policy.metrics().items()}
        for (name, level), scores in sorted(self._latest.items()):
            metrics[f"curriculum/{name}/success_at_level_{level}"] = fmean(scores)
        weights = self.weights.now()
        total = sum(weights.values())
        if len(weights) > 1:
            metrics |= {f"curriculum/{name}/share": weight / total for name, weight in weights.items()}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later draws depend on, as JSON-compatible values."""
        policies = {
            name: {
                "policy": type(policy).__name__,
                "num_levels": len(self.ladders[name]),
                "state": policy.state_dict(),
            }
            for name, policy in self.policies.items()
        }
        return {"policies": policies, "weights": self.weights.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Args:
            state: The saved state.

        Raises:
            ConfigError: The state belongs to other datasets, policies or levels.
        """
        saved = {name: (own["policy"], own["num_levels"]) for name, own in state["policies"].items()}
        ours = {name: (type(policy).__name__, len(self.ladders[name])) for name, policy in self.policies.items()}
        if saved != ours:
            raise ConfigError(
                f"the checkpoint's curriculum has policies and levels {saved}, but this run has {ours}; "
                "resume with the configuration that the run was started with, or set another run_dir"
            )
        for name, own in state["policies"].items():
            # Checkpoints of earlier versions hold the state beside the other two keys.
            self.policies[name].load_state_dict(own.get("state", own))
        self.weights.load_state_dict(state["weights"])
