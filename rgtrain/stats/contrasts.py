"""Differences between groups of trainings that answer the same problems, with errors clustered both ways."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from rgtrain.stats.intervals import t_quantile, t_tail

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray


class Block(NamedTuple):
    """The values of a group of trainings on a set of problems, for example the share of right answers.

    Attributes:
        group: The name of the group. Trainings of a group differ only in their seed. Different groups are independent.
        stratum: The name of the set of problems, for example a dataset. All blocks of a stratum have the same problems.
        weight: The weight of the block's mean in the contrast.
        values: One row per training and one column per problem. Blocks of a group have their rows in the same order,
            and blocks of a stratum have their columns in the same order.
        has_seed_effect: Whether a training's values depend on each other beyond the problems. The values of an
            untrained model don't: its seeds only sample other answers. All blocks of a group agree in this.
    """

    group: Hashable
    stratum: Hashable
    weight: float
    values: "NDArray[float64]"
    has_seed_effect: bool = True


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of block means, with its error.

    Attributes:
        estimate: The sum.
        standard_error: Its standard error.
        degrees: The degrees of freedom of the standard error.
        interval: The lower and upper end of its confidence interval.
        p_value: The two-sided p-value of the hypothesis that the sum is 0.
        num_trainings: The smallest number of trainings of a group.
        num_problems: The number of problems.
    """

    estimate: float
    standard_error: float
    degrees: float
    interval: tuple[float, float]
    p_value: float
    num_trainings: int
    num_problems: int


def crossed_contrast(blocks: Sequence[Block], *, level: float = 0.95) -> Contrast:
    """Estimate a weighted sum of block means, if values may depend on each other by training and by problem.

    The variance is V = V_trainings + V_problems - V_both, at least V_trainings and at least V_problems (Cameron,
    Gelbach and Miller, "Robust Inference With Multiway Clustering", 2011, eq. 2.9). Trainings are drawn within their
    group and problems within their stratum, so each part is the variance of a stratified mean:

    - V_trainings sums, over groups with a seed effect, the variance of the trainings' weighted means, divided by their
      number.
    - V_problems sums, over strata, the variance of the problems' weighted means, divided by their number.
    - V_both sums, over the blocks of these groups, the mean square of the two-way residuals, divided by the number of
      values. Both other parts contain it (Searle, Casella and McCulloch, "Variance Components", 1992, sec. 4.3).

    A normal approximation is poor if few problems differ. V_problems is therefore multiplied by 1 + 2 / k, in which k =
    (sum u^2)^2 / sum u^4 is the effective number of problems whose contribution u differs. This adds two problems with
    opposite differences, like Agresti and Min, "Simple improved confidence intervals for comparing matched proportions"
    (2005). Up to eight differing problems then have about the p-value of the exact sign test.

    The degrees of freedom are those of Satterthwaite, "An Approximate Distribution of Estimates of Variance Components"
    (1946): V^2 / sum V_i^2 / d_i, in which group i has one degree less than trainings and a stratum one less than
    problems.

    If there is no variance at all, each problem might still have had another value. The standard error is then that of
    Wilson's interval for none of the problems.

    Args:
        blocks: At least one block. A group with a single training gets the mean variance of the other groups, and the
            degrees of freedom are then at most theirs.
        level: The confidence level, in (0, 1).

    Returns:
        The contrast. Its interval is limited to the values that are possible for values in [0, 1].

    Raises:
        ValueError: There are no blocks, shapes differ within a group or stratum, a stratum has fewer than two problems,
            or all groups with a seed effect have a single training.

    >>> import numpy
    >>> values = numpy.array([[0.0, 0.5, 1.0], [0.0, 0.5, 0.0]])
    >>> round(crossed_contrast([Block("a", "easy", 1, values)]).estimate, 3)
    0.333
    """
    import numpy

    if not blocks:
        raise ValueError("a contrast of no blocks is not defined")
    rows: dict[Hashable, Any] = defaultdict(float)
    columns: dict[Hashable, Any] = defaultdict(float)
    num_trainings: dict[Hashable, int] = {}
    both = 0.0
    for group, stratum, weight, values, has_seed_effect in blocks:
        by_training, by_problem = values.mean(axis=1), values.mean(axis=0)
        if num_trainings.setdefault(group, len(by_training)) != len(by_training):
            raise ValueError(f"the blocks of group {group!r} have different numbers of trainings")
        if len(by_problem) < 2 or (stratum in columns and len(columns[stratum]) != len(by_problem)):
            raise ValueError(f"the blocks of stratum {stratum!r} need the same problems, and at least 2")
        columns[stratum] = columns[stratum] + weight * by_problem
        if has_seed_effect:
            rows[group] = rows[group] + weight * by_training
            if len(by_training) > 1:
                residuals = values - by_training[:, None] - by_problem + values.mean()
                num_free = (len(by_training) - 1) * (len(by_problem) - 1)
                both += weight**2 * float((residuals**2).sum()) / num_free / values.size
    spreads = {group: means.var(ddof=1) for group, means in rows.items() if len(means) > 1}
    if rows and not spreads:
        raise ValueError("every group has a single training, which has no variance; give at least 2 trainings")
    usual = sum(spreads.values()) / max(1, len(spreads))
    usual_degrees = sum(len(rows[group]) - 1 for group in spreads)
    # The variances with their degrees of freedom.
    parts = [
        (spreads[group] / len(means), len(means) - 1) if group in spreads else (usual, usual_degrees)
        for group, means in rows.items()
    ]
    contributions = numpy.concatenate([(means - means.mean()) / len(means) for means in columns.values()])
    squares = float((contributions**2).sum())
    # Rounding leaves contributions of about 1e-17.
    num_effective = squares**2 / float((contributions**4).sum()) if squares > 1e-24 else 1.0
    strata = [(means.var(ddof=1) / len(means) * (1 + 2 / num_effective), len(means) - 1) for means in columns.values()]
    by_trainings, by_problems = (sum(variance for variance, _ in each) for each in (parts, strata))
    variance = float(max(by_trainings + by_problems - both, by_trainings, by_problems))
    estimate = math.fsum(block.weight * float(block.values.mean()) for block in blocks)
    num_problems = len(contributions)
    if variance > 1e-24:
        squared_parts = sum(float(part) ** 2 / num_free for part, num_free in (*parts, *strata))
        error, degrees = math.sqrt(variance), max(1.0, variance**2 / squared_parts)
    else:
        z = NormalDist().inv_cdf((1 + level) / 2)
        error = z / (num_problems + z**2) * (1 + abs(estimate))
        degrees = float(sum(num_free for _, num_free in parts or strata))
    if len(spreads) < len(rows):
        degrees = min(degrees, float(usual_degrees))
    half = t_quantile((1 + level) / 2, degrees=degrees) * error
    lowest, highest = (math.fsum(limit(0.0, block.weight) for block in blocks) for limit in (min, max))
    return Contrast(
        estimate,
        error,
        degrees,
        (max(estimate - half, min(lowest, estimate)), min(estimate + half, max(highest, estimate))),
        t_tail(estimate / error, degrees=degrees) if abs(estimate) > 1e-12 else 1.0,
        min(num_trainings.values()),
        num_problems,
    )
