"""Two models on the same problems: how sure their difference is."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from rgtrain.stats.intervals import t_quantile


def bootstrap_interval(
    differences: Sequence[float], *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """The confidence interval of the mean of `differences`, one a problem: paired, so resampled by problem.

    The percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13), widened as a t
    interval is: plain percentiles are too narrow by sqrt((n - 1) / n) and by the normal in place of t (Hesterberg,
    "What Teachers Should Know about the Bootstrap", 2015, sec. 4.1.1). The same `seed` gives the same interval.

    None where all differences are equal, as among one or no problem that differs: nothing is known of the spread.
    """
    import numpy

    values = numpy.asarray(differences, dtype=float)
    if len(values) < 2 or numpy.ptp(values) == 0:
        return None
    random = numpy.random.default_rng(seed)
    # Resampling a list is drawing how often each of its distinct values occurs, which is much less work.
    distinct, counts = numpy.unique(values, return_counts=True)
    means = random.multinomial(len(values), counts / len(values), size=num_resamples) @ distinct / len(values)
    t = t_quantile((1 + level) / 2, degrees=len(values) - 1)
    tail = NormalDist().cdf(-math.sqrt(len(values) / (len(values) - 1)) * t)
    low, high = numpy.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sign_test(num_won: int, num_lost: int) -> float:
    """The p-value of "won and lost are equally likely", two-sided and exact; in (0, 1].

    The binomial test on the problems that differ; with one answer a problem it is McNemar's exact test ("Note on the
    sampling error of the difference between correlated proportions", 1947).

    >>> sign_test(5, 0)
    0.0625
    """
    if min(num_won, num_lost) < 0:
        raise ValueError(f"{num_won} won and {num_lost} lost are no counts")
    total = num_won + num_lost
    tail = sum(math.comb(total, count) for count in range(min(num_won, num_lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """`p_values` such that taking all below a level as real is wrong once at all with at most that chance; in [0, 1].

    Holm, "A simple sequentially rejective multiple test procedure", 1979. They keep their order.

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
