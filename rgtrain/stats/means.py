"""Means and their standard errors."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean. Raises ValueError on no values.

    >>> mean([0, 1, 1])
    0.6666666666666666
    """
    numbers = list(values)
    if not numbers:
        raise ValueError("the mean of no values is not defined")
    return math.fsum(numbers) / len(numbers)


def clustered_standard_error(values: Sequence[float], *, clusters: Sequence[Hashable]) -> float | None:
    """Standard error of `mean(values)` where values of the same cluster may depend on each other.

    With N values x_i in G clusters it is sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / N: the clustered
    error of Miller, "Adding Error Bars to Evals" (arXiv 2411.00640, sec. 2.2), with the usual finite-sample factor
    G / (G - 1) (Cameron and Miller, "A Practitioner's Guide to Cluster-Robust Inference", 2015, sec. II.B). With one
    value a cluster that is the textbook s / sqrt(N). An evaluation's clusters are its problems: several answers to one
    problem say less than the same number of answers to different problems.

    None for a single cluster, from which no error can be estimated. Raises ValueError on no values.

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
