"""Accuracy on the held-out problems of a run's validations, with confidence intervals, from its metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rgtrain.checkpoints.metrics_file import VALIDATION_ACCURACY
from rgtrain.config.plain_tree import lookup
from rgtrain.stats import share_interval

_MAX_SCORE = 1e6
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Held-out accuracy of a dataset: a value with its interval before training, at the last validation, at the best.

    Attributes:
        dataset: The dataset, with the level if there is a curriculum.
        values: By name (`before`, `now`, `best`): the step, the mean score, and the lower and upper end.
    """

    dataset: str
    values: Mapping[str, tuple[int, float, float, float]]


def held_out_accuracies(
    records: Iterable[Mapping[str, Any]], *, validation_size: int, datasets: Mapping[str, Any] = _NONE
) -> list[HeldOutAccuracy]:
    """Return the held-out accuracy of each dataset.

    Args:
        records: The metrics of each step.
        validation_size: The number of problems of a validation, which are divided evenly among datasets and levels.
        datasets: The run's `data.validation_datasets`, whose sizes count for the datasets that it has.

    Returns:
        The accuracies in the order of the datasets' names. `before` is missing if step 0 was not validated. Without a
        validation, the list is empty.
    """
    by_dataset: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if (match := VALIDATION_ACCURACY.fullmatch(name)) and _is_score(value):
                by_dataset.setdefault(match[1], {})[record["step"]] = float(value)
    equal_share = max(1, validation_size // max(1, len(by_dataset)))
    found = []
    for dataset, values in sorted(by_dataset.items()):
        chosen = {"now": max(values), "best": max(values, key=lambda step: (values[step], -step))}
        if min(values) == 0:
            chosen = {"before": 0} | chosen
        num_problems = int(lookup(datasets.get(dataset), "size", equal_share))
        figures = {name: (step, *_with_interval(values[step], num_problems)) for name, step in chosen.items()}
        found.append(HeldOutAccuracy(dataset, figures))
    return found


def overall_accuracy(accuracies: Sequence[HeldOutAccuracy], *, validation_size: int) -> HeldOutAccuracy:
    """Return the mean over datasets before training and at the last validation.

    Args:
        accuracies: The accuracies of at least one dataset.
        validation_size: The number of problems of a validation.

    Returns:
        The mean under the name "overall". A value that some dataset lacks at that step is missing.
    """
    values = {}
    for name in ("before", "now"):
        found = [accuracy.values[name] for accuracy in accuracies if name in accuracy.values]
        if len(found) == len(accuracies) and len({step for step, *_ in found}) == 1:
            mean = fmean(value for _, value, *_ in found)
            values[name] = (found[0][0], *_with_interval(mean, max(1, validation_size)))
    return HeldOutAccuracy("overall", values)


def _is_score(value: Any) -> bool:
    # The file may be damaged. JSON also has numbers that are no scores.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_SCORE


def _with_interval(mean: float, num_problems: int) -> tuple[float, float, float]:
    # Partial credit has at most the variance of right and wrong answers, so the interval is not too narrow.
    low, high = share_interval(min(1.0, max(0.0, mean)), num_independent=num_problems)
    return mean, low, high
