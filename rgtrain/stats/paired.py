"""Tests and confidence intervals for the difference between two models on the same problems."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from rgtrain.stats.intervals import t_quantile


def bootstrap_interval(
    differences: Sequence[float], *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Return the bootstrap confidence interval of the mean of `differences`.

    It is the percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13), widened
    like a t interval. Plain percentiles are too narrow by the factor sqrt((n - 1) / n), and because they use the normal
    distribution instead of t (Hesterberg, The American Statistician 69(4), 2015, sec. 4.1.1).

    Args:
        differences: The difference of each problem. Problems are resampled.
        level: The confidence level, in (0, 1).
        num_resamples: The number of bootstrap samples.
        seed: The seed of the resampling. The same seed gives the same interval.

    Returns:
        The lower and upper end; None if all differences are equal or there are fewer than two, because the spread is
        then unknown.
    """
    import numpy

    values = numpy.asarray(differences, dtype=float)
    if len(values) < 2 or numpy.ptp(values) == 0:
        return None
    random = numpy.random.default_rng(seed)
    # Draw how often each distinct value occurs. This is equivalent to resampling all values, and much faster.
    distinct, counts = numpy.unique(values, return_counts=True)
    means = random.multinomial(len(values), counts / len(values), size=num_resamples) @ distinct / len(values)
    t = t_quantile((1 + level) / 2, degrees=len(values) - 1)
    tail = NormalDist().cdf(-math.sqrt(len(values) / (len(values) - 1)) * t)
    low, high = numpy.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sign_test(num_won: int, num_lost: int) -> float:
    """Return the two-sided p-value of the exact sign test. Its null hypothesis is that won and lost are equally likely.

    It is the binomial test on the problems that differ. With one answer per problem it is McNemar's exact test ("Note
    on the sampling error of the difference between correlated proportions", 1947).

    Args:
        num_won: The number of problems that were won, at least 0.
        num_lost: The number of problems that were lost, at least 0.

    Returns:
        The p-value, in (0, 1].

    Raises:
        ValueError: A number is negative.

    >>> sign_test(5, 0)
    0.0625
    """
    if min(num_won, num_lost) < 0:
        raise ValueError(f"{num_won} won and {num_lost} lost are not counts; give numbers of at least 0")
    total = num_won + num_lost
    tail = sum(math.comb(total, count) for count in range(min(num_won, num_lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests by Holm's method.

    If all adjusted p-values below a level are taken as significant, the probability of one or more false positives is
    at most that level (Holm, "A simple sequentially rejective multiple test procedure", 1979).

    Args:
        p_values: The p-values, in [0, 1].

    Returns:
        The adjusted p-values in the same order, in [0, 1].

    >>> adjusted_p_values([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted
