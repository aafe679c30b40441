"""Means and their standard errors."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean.

    Args:
        values: At least one value.

    Returns:
        The mean.

    Raises:
        ValueError: There are no values.

    >>> mean([0, 1, 1])
    0.6666666666666666
    """
    numbers = list(values)
    if not numbers:
        raise ValueError("the mean of no values is not defined")
    return math.fsum(numbers) / len(numbers)


def clustered_standard_error(values: Sequence[float], *, clusters: Sequence[Hashable]) -> float | None:
    """Return the standard error of `mean(values)`, if values in the same cluster may depend on each other.

    For N values x_i in G clusters it is sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / N. This is the
    clustered error of Miller, "Adding Error Bars to Evals" (arXiv 2411.00640, sec. 2.2), with the usual finite-sample
    factor G / (G - 1) (Cameron and Miller, "A Practitioner's Guide to Cluster-Robust Inference", 2015, sec. II.B). With
    one value per cluster it is the textbook s / sqrt(N). The clusters of an evaluation are its problems, because
    several answers to one problem are worth less than the same number of answers to different problems.

    Args:
        values: At least one value.
        clusters: The cluster of each value.

    Returns:
        The standard error; None for a single cluster, from which none can be estimated.

    Raises:
        ValueError: There are no values, or not one cluster for each value.

    >>> clustered_standard_error([0, 0, 1, 1], clusters="aabb")
    0.5
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster labels")
    center = mean(values)
    deviations: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        deviations[cluster].append(value - center)
    num_clusters = len(deviations)
    if num_clusters == 1:
        return None
    squares = math.fsum(math.fsum(group) ** 2 for group in deviations.values())
    return math.sqrt(num_clusters / (num_clusters - 1) * squares) / len(values)
