"""Training metrics by dataset, from the details the reward attached to every completion."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rgtrain.curriculum.curriculum import has_signal


@dataclass(frozen=True)
class Rollout:
    """One scored completion: its dataset, the group (prompt) it belongs to, reward, and the reward's details."""

    dataset: str
    group: str
    reward: float
    details: Mapping[str, float]
    num_held_out: int = 0
    num_too_long: int = 0


def by_dataset(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means by dataset as `train/DATASET/NAME`, and how many problems were replaced while drawing the batch.

    Details called `num_...` are counts, and summed: how many answers were judged, and on how many judging failed.
    `zero_signal` is the share of groups that teach the task nothing: completions all alike in accuracy, or in reward.
    """
    metrics: dict[str, float] = {}
    for dataset, members in _grouped(rollouts, lambda rollout: rollout.dataset).items():
        groups = _grouped(members, lambda rollout: rollout.group)
        own = {name: _over([member.details[name] for member in members], name) for name in members[0].details}
        own["reward"] = fmean(member.reward for member in members)
        own["zero_signal"] = fmean(
            not has_signal([one.details["acc"] for one in group], [one.reward for one in group])
            for group in groups.values()
        )
        own["num_prompts"] = len(groups)
        own["num_scored"] = len(members)
        metrics.update({f"train/{dataset}/{name}": value for name, value in own.items()})
    prompts = [group[0] for group in _grouped(rollouts, lambda rollout: rollout.group).values()]
    metrics["data/replaced_held_out"] = sum(prompt.num_held_out for prompt in prompts)
    metrics["data/replaced_too_long"] = sum(prompt.num_too_long for prompt in prompts)
    return metrics


def _over(values: Sequence[float], name: str) -> float:
    return sum(values) if name.startswith("num_") else fmean(values)


def _grouped(rollouts: Sequence[Rollout], key: Callable[[Rollout], str]) -> dict[str, list[Rollout]]:
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[key(rollout)].append(rollout)
    return groups
