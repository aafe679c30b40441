"""Unbiased estimators from several answers to a problem: pass@k and majority@k."""

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb


def pass_at_k(num_right: int, *, num_samples: int, k: int) -> float:
    """Estimate the probability that at least one of k answers is right.

    It is the unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al., "Evaluating Large Language Models Trained on
    Code" (arXiv 2107.03374, eq. 1).

    Args:
        num_right: The number of right answers (c), from 0 to `num_samples`.
        num_samples: The number of answers to the problem (n).
        k: The number of answers to draw, from 1 to `num_samples`.

    Returns:
        The probability, in [0, 1].

    Raises:
        ValueError: `num_right` or `k` is out of its range.

    >>> pass_at_k(1, num_samples=4, k=2)
    0.5
    """
    if not 0 <= num_right <= num_samples:
        raise ValueError(f"{num_right} right answers of {num_samples} are not possible")
    _check_k(k, num_samples)
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at_k(answers: Sequence[Hashable | None], *, right: Sequence[bool], k: int) -> float:
    """Estimate the probability that the most frequent of k answers is right.

    It is the mean over all subsets of k answers. The subsets are counted, not drawn, so the estimate is unbiased like
    pass@k. The vote is the one of Wang et al., "Self-Consistency" (arXiv 2203.11171), and Lewkowycz et al., "Minerva"
    (arXiv 2206.14858), call the measure maj1@k. Answers that are tied win with equal probability.

    Args:
        answers: All answers to a problem. None, for an answer that could not be extracted, has no vote. A subset
            without votes is not solved.
        right: Whether each answer is right.
        k: The number of answers that vote, from 1 to the number of answers.

    Returns:
        The probability, in [0, 1].

    Raises:
        ValueError: The lengths differ, or `k` is out of its range.

    >>> majority_at_k(["7", "7", "8"], right=[True, True, False], k=3)
    1.0
    """
    if len(answers) != len(right):
        raise ValueError(f"{len(answers)} answers but {len(right)} verdicts")
    _check_k(k, len(answers))
    counts = Counter(answer for answer in answers if answer is not None)
    num_silent = len(answers) - counts.total()
    num_right = Counter(answer for answer, is_right in zip(answers, right, strict=True) if is_right)
    won = sum(
        num_right[answer] / count * _wins(count, [n for other, n in counts.items() if other != answer], num_silent, k)
        for answer, count in counts.items()
        if num_right[answer]
    )
    return won / comb(len(answers), k)


def _wins(count: int, others: Sequence[int], num_silent: int, k: int) -> float:
    """Count the subsets of k answers in which an answer given `count` times wins. A tie of t answers counts 1/t."""
    total = 0.0
    for votes in range(1, min(count, k) + 1):
        # ways[v, t] counts the choices of v other answers in which t of them tie at `votes` and none has more.
        ways = {(0, 0): 1}
        for other in others:
            grown: Counter[tuple[int, int]] = Counter()
            for (taken, ties), number in ways.items():
                for more in range(min(other, votes, k - votes - taken) + 1):
                    grown[taken + more, ties + (more == votes)] += number * comb(other, more)
            ways = grown
        total += comb(count, votes) * sum(
            number * comb(num_silent, k - votes - taken) / (ties + 1) for (taken, ties), number in ways.items()
        )
    return total


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; with {num_samples} answers give 1 to {num_samples}")
