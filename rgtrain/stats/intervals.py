"""Confidence intervals of means and shares, and quantiles of Student's t."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import NormalDist

from rgtrain.stats.means import mean


def effective_size(values: Sequence[float], *, clusters: Sequence[Hashable]) -> float:
    """Return the number of independent values that would estimate `mean(values)` equally well.

    It is the number of values divided by the design effect 1 + r (w - 1) of Kish, "Survey Sampling" (1965, sec. 8.2).
    Here w is the mean cluster size, weighted by size, and r the intraclass correlation, estimated by analysis of
    variance (Donner and Klar, "Design and Analysis of Cluster Randomization Trials in Health Research", 2000, ch. 1)
    and limited to [0, 1]. If all values are equal, r can't be estimated and is taken as 1, so repeats add nothing.

    Args:
        values: At least one value.
        clusters: The cluster of each value.

    Returns:
        The effective sample size. It is the number of values if no cluster repeats, at most that number otherwise, and
        1 for a single cluster. It need not be a whole number.

    Raises:
        ValueError: There are no values, or not one cluster for each value.

    >>> effective_size([0, 0, 1, 1], clusters="aabb")
    2.0
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster labels")
    center, size = mean(values), len(values)
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value - center)
    num_clusters = len(groups)
    # The mean size of a value's cluster.
    weighted_size = math.fsum(len(group) ** 2 for group in groups.values()) / size
    if num_clusters == size:
        return float(size)
    if num_clusters == 1 or min(values) == max(values):
        return size / weighted_size
    between = math.fsum(math.fsum(group) ** 2 / len(group) for group in groups.values())
    total = math.fsum(deviation**2 for group in groups.values() for deviation in group)
    mean_between, mean_within = between / (num_clusters - 1), max(0.0, total - between) / (size - num_clusters)
    usual_size = (size - weighted_size) / (num_clusters - 1)
    correlation = (mean_between - mean_within) / (mean_between + (usual_size - 1) * mean_within)
    return size / (1 + min(1.0, max(0.0, correlation)) * (weighted_size - 1))


def mean_interval(values: Sequence[float], *, clusters: Sequence[Hashable], level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of `mean(values)`, if values in the same cluster may depend on each other.

    Args:
        values: At least one value in [0, 1].
        clusters: The cluster of each value.
        level: The confidence level, in (0, 1).

    Returns:
        The lower and upper end (see `share_interval`), in [0, 1].

    Raises:
        ValueError: There are no values, or not one cluster for each value.

    >>> [round(end, 3) for end in mean_interval([0, 0, 0, 0, 0], clusters=range(5))]
    [0.0, 0.434]
    """
    size, center = effective_size(values, clusters=clusters), mean(values)
    variance = mean((value - center) ** 2 for value in values)
    return share_interval(center, variance=variance, num_independent=size, level=level)


def share_interval(
    share: float, *, num_independent: float, variance: float | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Return the confidence interval of a share.

    It is Wilson's score interval (Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", 2001,
    eq. 4). Unlike an interval from the standard error, it keeps its level near 0 and 1 and never has width 0. For the
    mean of other values in [0, 1], their variance replaces that of right and wrong answers.

    Args:
        share: The share of right answers, in [0, 1].
        num_independent: The number of independent answers, above 0 (see `effective_size`).
        variance: The variance of the values; by default share (1 - share), the variance of right and wrong answers.
        level: The confidence level, in (0, 1).

    Returns:
        The lower and upper end, in [0, 1].

    Raises:
        ValueError: `num_independent` is not above 0.

    >>> [round(end, 3) for end in share_interval(0, num_independent=20)]
    [0.0, 0.161]
    """
    if num_independent <= 0:
        raise ValueError(f"an interval from {num_independent} answers is not defined")
    if variance is None:
        variance = share * (1 - share)
    z = NormalDist().inv_cdf((1 + level) / 2)
    weight = num_independent + z**2
    center = (share * num_independent + z**2 / 2) / weight
    half = z * math.sqrt(num_independent * variance + z**2 / 4) / weight
    # Rounding must not put the share itself outside.
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def t_quantile(probability: float, *, degrees: float) -> float:
    """Return a quantile of Student's t, by Newton's method on `t_tail`.

    Args:
        probability: The probability of the quantile, in (0, 1).
        degrees: The degrees of freedom, at least 1. They need not be a whole number.

    Returns:
        The quantile, with a relative error of at most 1e-9.

    Raises:
        ValueError: `probability` or `degrees` is out of its range.

    >>> round(t_quantile(0.975, degrees=4), 3)
    2.776
    """
    if not 0 < probability < 1:
        raise ValueError(f"Student's t has no quantile of the probability {probability}")
    tail = 2 * min(probability, 1 - probability)
    if tail == 1:
        return 0.0
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    # The tail is convex and heavier than the normal one, so the steps go up and don't pass the quantile.
    quantile = abs(NormalDist().inv_cdf(probability))
    for _ in range(100):
        density = math.exp(log_scale - (degrees + 1) / 2 * math.log1p(quantile**2 / degrees))
        step = (t_tail(quantile, degrees=degrees) - tail) / (2 * density)
        quantile += step
        if abs(step) < 1e-11 * quantile:
            break
    return math.copysign(quantile, probability - 0.5)


def t_tail(statistic: float, *, degrees: float) -> float:
    """Return the probability that Student's t is at least as far from 0 as a statistic: the two-sided p-value.

    It is the regularised incomplete beta function I_x(d/2, 1/2) at x = d / (d + t^2). Abramowitz and Stegun (1964) give
    it in eq. 26.7.1 and its continued fraction in eq. 26.5.8. The fraction is evaluated by the method of Lentz
    ("Generating Bessel functions in Mie scattering calculations using continued fractions", 1976).

    Args:
        statistic: The statistic t.
        degrees: The degrees of freedom d, at least 1. They need not be a whole number.

    Returns:
        The probability, in [0, 1].

    Raises:
        ValueError: There are fewer than 1 degrees of freedom.

    >>> round(t_tail(2.776, degrees=4), 3)
    0.05
    """
    if degrees < 1:
        raise ValueError(f"Student's t is not defined with {degrees} degrees of freedom; give at least 1")
    if statistic == 0:
        return 1.0
    x = degrees / (degrees + statistic**2)
    a, b = degrees / 2, 0.5
    # The fraction converges fast below this place, and I_x(a, b) = 1 - I_(1-x)(b, a) covers the rest.
    if x < (a + 1) / (a + b + 2):
        return min(1.0, _beta_share(x, a, b))
    return max(0.0, 1 - _beta_share(statistic**2 / (degrees + statistic**2), b, a))


def _beta_share(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), for x below (a + 1) / (a + b + 2)."""
    if x <= 0:
        return 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    numerator, fraction = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    denominator = fraction
    for step in range(1, 1000):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        for term in (even, odd):
            denominator = 1 / (1 + term * denominator)
            numerator = 1 + term / numerator
            fraction *= denominator * numerator
        if abs(denominator * numerator - 1) < 1e-14:
            break
    return front * fraction / a
