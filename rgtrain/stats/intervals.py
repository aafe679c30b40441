"""Confidence intervals of shares, and quantiles of Student's t."""

import math
from statistics import NormalDist


def effective_size(share: float, error: float | None, *, num_clusters: int) -> float:
    """Return the number of independent answers that would estimate `share` with the same standard error.

    It is share (1 - share) / error^2, the sample size divided by the design effect (Kish, "Survey Sampling", 1965,
    sec. 8.2).

    Args:
        share: The share of right answers, in [0, 1].
        error: The clustered standard error of `share`. If it is None or 0, each cluster counts as one answer.
        num_clusters: The number of clusters.

    Returns:
        The effective sample size, which need not be a whole number.
    """
    if not error:
        return float(num_clusters)
    return share * (1 - share) / error**2


def share_interval(share: float, *, num_independent: float, level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a share.

    It is Wilson's score interval (Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", 2001,
    eq. 4). Unlike an interval from the standard error, it keeps its level near 0 and 1 and never has width 0.

    Args:
        share: The share of right answers, in [0, 1].
        num_independent: The number of independent answers, above 0 (see `effective_size`).
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
    z = NormalDist().inv_cdf((1 + level) / 2)
    weight = num_independent + z**2
    center = (share * num_independent + z**2 / 2) / weight
    half = z * math.sqrt(num_independent * share * (1 - share) + z**2 / 4) / weight
    return max(0.0, center - half), min(1.0, center + half)


def t_quantile(probability: float, *, degrees: int) -> float:
    """Return a quantile of Student's t, by the expansion 26.7.5 of Abramowitz and Stegun (1964).

    The relative error of the 97.5 % quantile is 1/300 with 4 degrees of freedom, and smaller with more.

    Args:
        probability: The probability of the quantile, in (0, 1).
        degrees: The degrees of freedom, at least 1.

    Returns:
        The quantile.

    Raises:
        ValueError: There are fewer than 1 degrees of freedom.

    >>> round(t_quantile(0.975, degrees=10), 3)
    2.228
    """
    if degrees < 1:
        raise ValueError(f"Student's t has no quantile with {degrees} degrees of freedom")
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
