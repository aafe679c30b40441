"""Exact tests of counts, and the control of false discoveries among many tests."""

from collections.abc import Sequence
from math import comb


def fisher_exact_gain(before: int, after: int, *, num_before: int, num_after: int) -> float:
    """Return the one-sided p-value of Fisher's exact test that the chance of success has risen.

    It is the probability of at least `after` successes among the second tries, if all successes are spread over all
    tries at random (Fisher, "The Logic of Inductive Inference", 1935).

    Args:
        before: The number of successes among the first tries.
        after: The number of successes among the second tries.
        num_before: The number of first tries.
        num_after: The number of second tries.

    Returns:
        The p-value, in (0, 1].

    Raises:
        ValueError: There are more successes than tries.

    >>> fisher_exact_gain(0, 2, num_before=2, num_after=2) == 1 / 6
    True
    """
    if not (0 <= before <= num_before and 0 <= after <= num_after):
        raise ValueError(f"{before} of {num_before} and {after} of {num_after} successes are not possible")
    total = before + after
    ways = sum(
        comb(num_after, count) * comb(num_before, total - count) for count in range(after, min(total, num_after) + 1)
    )
    return ways / comb(num_before + num_after, total)


def false_discovery_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by the method of Benjamini and Hochberg.

    If all adjusted p-values below a level are taken as discoveries, the expected share of false ones among them is at
    most that level ("Controlling the False Discovery Rate", 1995).

    Args:
        p_values: The p-values of independent tests, in [0, 1].

    Returns:
        The adjusted p-values in the same order, in [0, 1].

    >>> false_discovery_p_values([0.5, 0.02, 0.01])
    [0.5, 0.03, 0.03]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    adjusted = [0.0] * len(p_values)
    smallest = 1.0
    for rank, position in enumerate(order):
        smallest = min(smallest, p_values[position] * len(p_values) / (len(p_values) - rank))
        adjusted[position] = smallest
    return adjusted
