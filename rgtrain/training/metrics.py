"""Compute training metrics by dataset from the rewards of completions and their details."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rgtrain.curriculum.curriculum import has_signal


@dataclass(frozen=True)
class Rollout:
    """One scored completion.

    Attributes:
        dataset: The dataset of its problem.
        group: The uid of its prompt.
        reward: The total reward.
        details: The details of the reward by name, such as `acc` (the accuracy).
        response_hash: A hash of its tokens, equal for equal completions.
        num_held_out: The number of held-out problems that were skipped when the problem was drawn.
        num_too_long: The number of problems that were skipped because their prompts were too long.
        level: The level of its problem in the dataset's curriculum. None without a curriculum.
    """

    dataset: str
    group: str
    reward: float
    details: Mapping[str, float]
    response_hash: int
    num_held_out: int = 0
    num_too_long: int = 0
    level: int | None = None


def by_dataset(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Aggregate the rewards and details of a batch by dataset.

    Args:
        rollouts: All completions of the batch.

    Returns:
        For each dataset, `train/DATASET/NAME` is the mean of a detail, or its sum if NAME starts with `num_`.
        `zero_signal` is the share of groups without a learning signal, because all completions have the same accuracy
        or the same reward. `identical` is the share of groups of equal completions.
        `data/replaced_...` is the number of problems that were replaced while the batch was drawn.
    """
    metrics: dict[str, float] = {}
    for dataset, members in _grouped(rollouts, lambda rollout: rollout.dataset).items():
        groups = _grouped(members, lambda rollout: rollout.group)
        values = {name: _aggregate([member.details[name] for member in members], name) for name in members[0].details}
        values["reward"] = fmean(member.reward for member in members)
        values["zero_signal"] = fmean(
            not has_signal([rollout.details["acc"] for rollout in group], [rollout.reward for rollout in group])
            for group in groups.values()
        )
        hashes = [[rollout.response_hash for rollout in group] for group in groups.values()]
        values["identical"] = fmean(len(of_group) > 1 and len(set(of_group)) == 1 for of_group in hashes)
        values["num_prompts"] = len(groups)
        values["num_scored"] = len(members)
        metrics.update({f"train/{dataset}/{name}": value for name, value in values.items()})
    prompts = [group[0] for group in _grouped(rollouts, lambda rollout: rollout.group).values()]
    metrics["data/replaced_held_out"] = sum(prompt.num_held_out for prompt in prompts)
    metrics["data/replaced_too_long"] = sum(prompt.num_too_long for prompt in prompts)
    return metrics


def _aggregate(values: Sequence[float], name: str) -> float:
    return sum(values) if name.startswith("num_") else fmean(values)


def _grouped(rollouts: Sequence[Rollout], key: Callable[[Rollout], str]) -> dict[str, list[Rollout]]:
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[key(rollout)].append(rollout)
    return groups
