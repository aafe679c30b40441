"""Tests and confidence intervals for the difference between two models on the same questions."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from rgtrain.stats.intervals import t_quantile

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

# Up to this number of outcomes, all of them are counted. With more, so many are drawn.
_MAX_OUTCOMES = 200_000
_NUM_FLIPS = 20_000
# The number of values that a step of the resampling holds in memory.
_MAX_DRAWN = 4_000_000


class PairedSums(NamedTuple):
    """The values of two models at one question, for example 1 for each right and 0 for each wrong answer.

    Attributes:
        before: The sum of the first model's values.
        num_before: The number of the first model's values, at least 1.
        after: The sum of the second model's values.
        num_after: The number of the second model's values, at least 1.
    """

    before: float
    num_before: int
    after: float
    num_after: int


def mean_difference(questions: Sequence[PairedSums]) -> float:
    """Return the mean of all values of the second model minus that of the first. Every value has equal weight.

    Args:
        questions: At least one question.

    Returns:
        The difference.

    Raises:
        ValueError: There are no questions.

    >>> mean_difference([PairedSums(0, 1, 1, 1), PairedSums(1, 3, 1, 3)])
    0.25
    """
    if not questions:
        raise ValueError("the mean difference over no questions is not defined")
    before, num_before, after, num_after = (math.fsum(column) for column in zip(*questions, strict=True))
    return after / num_after - before / num_before


def difference_interval(
    questions: Sequence[PairedSums], *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the confidence interval of `mean_difference(questions)`.

    Whole questions are resampled, and every resample is evaluated like the difference itself: each answer counts
    equally, so a question weighs as much as it has answers. This is the cluster bootstrap of a ratio (Davison and
    Hinkley, "Bootstrap Methods and their Application", 1997, sec. 3.8). Its percentiles are widened like a t interval.
    Plain percentiles are too narrow by the factor sqrt((n - 1) / n), and because they use the normal distribution
    instead of t (Hesterberg, The American Statistician 69(4), 2015, sec. 4.1.1). Here n is the number of questions, or
    with unequal weights Kish's effective number.

    Resampling can't show the error if all questions have the same difference d. The interval is then d - u (1 + d) to
    d + u (1 - d). Here u is the upper end of Wilson's interval for none of n questions that differ from the others.
    For d = 0 and d = 1 this is the score interval of Tango (Statistics in Medicine 17, 1998).

    Args:
        questions: At least one question. Values must be in [0, 1].
        level: The confidence level, in (0, 1).
        num_resamples: The number of bootstrap samples.
        seed: The seed of the resampling. The same seed gives the same interval.

    Returns:
        The lower and upper end, in [-1, 1]. The difference lies between them.
    """
    import numpy

    difference = mean_difference(questions)
    rows = numpy.asarray(questions, dtype=float)
    num_effective = _effective_number(rows)
    influences = _influences(rows)
    if numpy.abs(influences).max() < 1e-12:
        z = NormalDist().inv_cdf((1 + level) / 2)
        unseen = z**2 / (num_effective + z**2)
        return difference - unseen * (1 + difference), difference + unseen * (1 - difference)
    if (rows[:, 1] == rows[:, 3]).all():
        # Only differences matter, and there are fewer distinct ones.
        rows = numpy.column_stack([rows[:, 2] - rows[:, 0], rows[:, 1]])
    # Draw how often each distinct row occurs. This is equivalent to resampling all rows, and much faster.
    distinct, counts = numpy.unique(rows, axis=0, return_counts=True)
    random = numpy.random.default_rng(seed)
    differences = []
    chunk = max(1, _MAX_DRAWN // len(distinct))
    for start in range(0, num_resamples, chunk):
        drawn = random.multinomial(len(rows), counts / len(rows), size=min(chunk, num_resamples - start)) @ distinct
        if distinct.shape[1] == 2:
            differences.append(drawn[:, 0] / drawn[:, 1])
        else:
            differences.append(drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1])
    t = t_quantile((1 + level) / 2, degrees=max(1.0, num_effective - 1))
    tail = NormalDist().cdf(-math.sqrt(num_effective / (num_effective - 1)) * t)
    low, high = numpy.quantile(numpy.concatenate(differences), [tail, 1 - tail])
    return min(float(low), difference), max(float(high), difference)


def sign_flip_test(questions: Sequence[PairedSums], *, seed: int = 0) -> float:
    """Return the two-sided p-value of a permutation test of `mean_difference(questions)`.

    Its null hypothesis is that the two models are exchangeable at every question. The difference is the sum of one
    contribution per question, and under the null hypothesis each has either sign with equal probability (Good,
    "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005, sec. 3.2). If every question has one answer, it
    is McNemar's exact test ("Note on the sampling error of the difference between correlated proportions", 1947).

    Args:
        questions: At least one question.
        seed: The seed of the random signs, which are used if there are too many outcomes to count all of them.

    Returns:
        The p-value, in (0, 1].

    >>> sign_flip_test([PairedSums(0, 1, 1, 1)] * 5)
    0.0625
    """
    import numpy

    mean_difference(questions)
    rows = numpy.asarray(questions, dtype=float)
    # Under the null hypothesis both models have the same mean.
    pooled = (rows[:, 0].sum() + rows[:, 2].sum()) / (rows[:, 1].sum() + rows[:, 3].sum())
    contributions = _contributions(rows, pooled, pooled)
    largest = numpy.abs(contributions).max()
    if largest < 1e-12:
        return 1.0
    # Rounding makes equal contributions equal.
    contributions = numpy.round(contributions / largest, 10)
    observed = abs(contributions.sum()) - 1e-8
    sizes, counts = numpy.unique(numpy.abs(contributions[contributions != 0]), return_counts=True)
    if math.prod(int(count) + 1 for count in counts) <= _MAX_OUTCOMES:
        sums, chances = numpy.zeros(1), numpy.ones(1)
        for size, count in zip(sizes, counts, strict=True):
            sums = numpy.add.outer(sums, size * (2 * numpy.arange(count + 1) - count)).ravel()
            chances = numpy.multiply.outer(chances, _binomial_chances(count)).ravel()
        return min(1.0, float(chances[numpy.abs(sums) >= observed].sum()))
    random = numpy.random.default_rng(seed)
    sums = numpy.zeros(_NUM_FLIPS)
    for size, count in zip(sizes, counts, strict=True):
        sums += size * (2 * random.binomial(count, 0.5, size=_NUM_FLIPS) - count)
    # The observed signs are one of the outcomes, so the p-value is never 0.
    return float((1 + (numpy.abs(sums) >= observed).sum()) / (1 + _NUM_FLIPS))


def _contributions(rows: "NDArray[float64]", before: float, after: float) -> "NDArray[float64]":
    """Return each question's part in the difference of the means, if `before` and `after` are their expectations."""
    first = (rows[:, 0] - before * rows[:, 1]) / rows[:, 1].sum()
    second = (rows[:, 2] - after * rows[:, 3]) / rows[:, 3].sum()
    return second - first


def _influences(rows: "NDArray[float64]") -> "NDArray[float64]":
    """Return each question's deviation from the others, times its weight. All are 0 if all differences are equal."""
    return _contributions(rows, rows[:, 0].sum() / rows[:, 1].sum(), rows[:, 2].sum() / rows[:, 3].sum())


def _effective_number(rows: "NDArray[float64]") -> float:
    """Return Kish's effective number of questions: (sum of weights)^2 / (sum of squared weights)."""
    weights = rows[:, 1] / rows[:, 1].sum() + rows[:, 3] / rows[:, 3].sum()
    return float(weights.sum() ** 2 / (weights**2).sum())


def _binomial_chances(count: Any) -> "NDArray[float64]":
    """Return the probability of 0 to `count` heads in `count` throws of a coin."""
    import numpy

    steps = numpy.arange(1, count + 1)
    logarithms = numpy.concatenate([[0.0], numpy.cumsum(numpy.log((count - steps + 1) / steps))])
    chances = numpy.exp(logarithms - count * math.log(2))
    return chances


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
