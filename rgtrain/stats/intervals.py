"""Confidence intervals of shares, and the quantiles they need."""

import math
from statistics import NormalDist


def effective_size(share: float, error: float | None, *, num_clusters: int) -> float:
    """The number of independent answers that would know `share` as well as these do.

    share (1 - share) / error^2, so the sample size over the design effect (Kish, "Survey Sampling", 1965, sec. 8.2).
    Where the error says nothing, as it is None or 0, each cluster counts as one answer.
    """
    if not error:
        return float(num_clusters)
    return share * (1 - share) / error**2


def share_interval(share: float, *, num_independent: float, level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a share of `num_independent` answers; inside [0, 1], and never of width 0.

    Wilson's score interval (Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", 2001, eq. 4),
    which holds its level near 0 and 1 too, where a standard error is 0. Raises ValueError unless num_independent > 0.

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
    """Quantile of Student's t, by the expansion of Abramowitz and Stegun (1964), 26.7.5.

    Right to 1 in 300 at the 97.5 % quantile with 4 degrees of freedom, and better with more. Raises ValueError for
    fewer than 1.

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
