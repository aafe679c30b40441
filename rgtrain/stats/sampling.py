"""What several answers to one problem tell about it: pass@k and majority@k, without bias."""

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb


def pass_at_k(num_right: int, *, num_samples: int, k: int) -> float:
    """The chance that at least one of k answers is right, estimated from `num_samples` answers; in [0, 1].

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al., "Evaluating Large Language Models Trained on Code"
    (arXiv 2107.03374, eq. 1). Raises ValueError unless 0 <= num_right <= num_samples and 1 <= k <= num_samples.

    >>> pass_at_k(1, num_samples=4, k=2)
    0.5
    """
    if not 0 <= num_right <= num_samples:
        raise ValueError(f"{num_right} right answers of {num_samples} are not possible")
    _check_k(k, num_samples)
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at_k(answers: Sequence[Hashable | None], *, right: Sequence[bool], k: int) -> float:
    """The chance that the most frequent of k answers is right, estimated from all answers to a problem; in [0, 1].

    It is the mean over all subsets of k answers, counted and not drawn, so unbiased as pass@k is (Wang et al., "Self-
    Consistency", arXiv 2203.11171, takes the vote; Lewkowycz et al., "Minerva", arXiv 2206.14858, call it maj1@k). The
    most frequent ones of equal count win with equal chance. None, an answer that could not be extracted, has no vote;
    where nobody votes, the problem is not solved. `right[i]` says whether `answers[i]` is right.

    Raises ValueError unless both have one length of at least k, and k >= 1.

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
    """In how many subsets of k an answer given `count` times wins the vote; a tie of t counts 1/t."""
    total = 0.0
    for votes in range(1, min(count, k) + 1):
        # ways[v, t]: choices of `v` answers from the others in which t of them tie at `votes` and none has more.
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
