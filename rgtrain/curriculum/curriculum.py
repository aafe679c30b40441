"""Which dataset and level each training problem is drawn from, and how groups of answers change that."""

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
    """One training rollout group: where its problem came from, and each answer's score and reward."""

    dataset: str
    level: int | None
    scores: Sequence[float]
    rewards: Sequence[float]


def has_signal(scores: Iterable[float], rewards: Iterable[float]) -> bool:
    """Whether a group of answers teaches the task: they differ both in score and in reward.

    The reward alone is not enough: with a penalty for length, nearly every group differs. The score alone is not
    enough either: the reward `solved` pays nothing for partial credit.
    """
    return len(set(scores)) > 1 and len(set(rewards)) > 1


class Curriculum:
    """Draws depend on the seed, the index and the state alone, so a run continues from a saved state as it was.

    Datasets without a ladder are drawn with their own parameters.
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
        """Of each dataset with levels, the dataset at every level."""
        return {
            name: [replace(self._specs[name], params=params) for params in ladder.levels]
            for name, ladder in self.ladders.items()
        }

    def choose_any_level(self, index: int) -> Choice:
        """Like `choose`, but by the given weights and all levels alike, whatever the state: for validation."""
        rng = random.Random(f"{self._seed}/{index}")
        spec = rng.choices(list(self._specs.values()), weights=[spec.weight for spec in self._specs.values()])[0]
        if spec.name not in self.ladders:
            return Choice(spec)
        return self._at_level(spec.name, rng.randrange(len(self.ladders[spec.name])))

    def choose(self, index: int) -> Choice:
        """The dataset and level of training problem `index`, drawn by the state as it is now."""
        rng = random.Random(f"{self._seed}/{index}")
        weights = self.weights.now()
        name = rng.choices(list(self._specs), weights=[weights[name] for name in self._specs])[0]
        if name not in self.policies:
            return Choice(self._specs[name])
        return self._at_level(name, self.policies[name].draw(rng))

    def _at_level(self, name: str, level: int) -> Choice:
        return Choice(replace(self._specs[name], params=self.ladders[name].levels[level]), level)

    def observe(self, groups: Iterable[GroupResult]) -> None:
        """Take in the groups of a training step."""
        latest: dict[tuple[str, int], list[float]] = defaultdict(list)
        for group in groups:
            self.weights.observe(group.dataset, has_signal=has_signal(group.scores, group.rewards))
            if group.level is not None:
                self.policies[group.dataset].observe(group.level, group.scores)
                latest[group.dataset, group.level] += group.scores
        self._latest = dict(latest)

    def metrics(self) -> dict[str, float]:
        """`curriculum/DATASET/...`: its policy's numbers, the last step's success by level, and its share of draws."""
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
        """All that later draws depend on, as JSON can hold it."""
        policies = {
            name: {"policy": type(policy).__name__, "num_levels": len(self.ladders[name]), **policy.state_dict()}
            for name, policy in self.policies.items()
        }
        return {"policies": policies, "weights": self.weights.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises ConfigError where it is of other datasets, policies or levels."""
        saved = {name: (own["policy"], own["num_levels"]) for name, own in state["policies"].items()}
        ours = {name: (type(policy).__name__, len(self.ladders[name])) for name, policy in self.policies.items()}
        if saved != ours:
            raise ConfigError(
                f"the checkpoint's curriculum has {saved}, this run's {ours} (policy and levels of each dataset): "
                "continue with the configuration that the run was started with, or set another run_dir"
            )
        for name, own in state["policies"].items():
            self.policies[name].load_state_dict(own)
        self.weights.load_state_dict(state["weights"])
