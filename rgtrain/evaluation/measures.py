"""Aggregate judged answers: accuracy, mean score, pass@k, majority@k and error counts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rgtrain.evaluation.judged_answers import Answer
from rgtrain.stats import clustered_standard_error, effective_size, majority_at_k, mean, pass_at_k, share_interval


@dataclass(frozen=True)
class Measures:
    """Aggregates over a set of answers, all with equal weight.

    Requests that the endpoint refused count only in `num_problems`, `num_answers` and `num_refused`. If all of them
    were refused, a mean or share is None.

    Standard errors are clustered by problem, and are None for a single problem. Two problems that ask the same question
    are one cluster, because answers to them are not independent.

    Attributes:
        num_problems: The number of distinct questions.
        num_answers: The number of answers, including refused requests.
        num_refused: The number of requests that the endpoint refused for good.
        strict_accuracy: The share of answers with score 1.
        strict_accuracy_error: The standard error of `strict_accuracy`.
        strict_accuracy_interval: The 95 % confidence interval of `strict_accuracy`.
        mean_score: The mean score, which includes partial credit, in [0, 1].
        mean_score_error: The standard error of `mean_score`.
        pass_at: pass@k by k (see pass_at_k), for powers of 2 and the number of answers per problem. Problems with fewer
            than k answers, because requests were refused, do not count.
        majority_at: majority@k by k (see majority_at_k), for the same k.
        share_without_answer: The share of completions from which no answer could be extracted.
        share_truncated: The share of completions that were cut off at max_tokens.
        mean_tokens: The mean length of the completions whose length is known, in tokens; None if none is.
        num_timeouts: The number of answers whose judging took too long.
        num_scorer_errors: The number of answers that could not be judged, by kind of failure (see Score.error),
            timeouts included. Their score is 0.
    """

    num_problems: int
    num_answers: int
    num_refused: int
    strict_accuracy: float | None
    strict_accuracy_error: float | None
    strict_accuracy_interval: tuple[float, float] | None
    mean_score: float | None
    mean_score_error: float | None
    pass_at: Mapping[str, "Estimate"]
    majority_at: Mapping[str, "Estimate"]
    share_without_answer: float | None
    share_truncated: float | None
    mean_tokens: float | None
    num_timeouts: int
    num_scorer_errors: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, None for no problem, and its standard error, None for fewer than two problems."""

    mean: float | None
    error: float | None


def measure(answers: Sequence[Answer]) -> Measures:
    """Compute all measures of `answers`.

    Args:
        answers: Judged answers, in any order.

    Returns:
        The measures.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("measures of no values are not defined")
    answered = [answer for answer in answers if not answer.refused]
    fingerprints = [answer.fingerprint for answer in answered]
    right = [float(answer.is_right) for answer in answered]
    scores = [answer.score for answer in answered]
    accuracy, error = _mean_and_error(right, clusters=fingerprints)
    interval = None
    if accuracy is not None:
        num_independent = effective_size(accuracy, error, num_clusters=len(set(fingerprints)))
        interval = share_interval(accuracy, num_independent=num_independent)
    mean_score, mean_score_error = _mean_and_error(scores, clusters=fingerprints)
    failures = Counter(answer.failure for answer in answered if answer.failure)
    return Measures(
        num_problems=len({answer.fingerprint for answer in answers}),
        num_answers=len(answers),
        num_refused=len(answers) - len(answered),
        strict_accuracy=accuracy,
        strict_accuracy_error=error,
        strict_accuracy_interval=interval,
        mean_score=mean_score,
        mean_score_error=mean_score_error,
        pass_at=_by_k(answers, _pass_at),
        majority_at=_by_k(answers, _majority_at),
        share_without_answer=_mean_or_none([answer.answer is None for answer in answered]),
        share_truncated=_mean_or_none([answer.finish_reason == "length" for answer in answered]),
        mean_tokens=_mean_or_none([answer.tokens for answer in answered if answer.tokens is not None]),
        num_timeouts=failures["timeout"],
        num_scorer_errors=dict(failures),
    )


def _mean_or_none(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _mean_and_error(values: Sequence[float], *, clusters: Sequence[str]) -> tuple[float | None, float | None]:
    return (mean(values), clustered_standard_error(values, clusters=clusters)) if values else (None, None)


def _by_k(answers: Sequence[Answer], estimate: Callable[[Sequence[Answer], int], float]) -> dict[str, Estimate]:
    """Average `estimate(answers to one problem, k)` over the problems with at least k answers, for each k."""
    by_problem: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_problem[answer.problem].append(answer)
    # Refused requests don't change the values of k, so that they are the same for all datasets.
    ks = _ks(min(map(len, by_problem.values())))
    groups = [[answer for answer in group if not answer.refused] for group in by_problem.values()]
    estimates = {}
    for k in ks:
        values = [(estimate(group, k), group[0].fingerprint) for group in groups if len(group) >= k]
        estimates[str(k)] = Estimate(
            *_mean_and_error([value for value, _ in values], clusters=[question for _, question in values])
        )
    return estimates


def _ks(num_samples: int) -> list[int]:
    powers = [2**power for power in range(num_samples.bit_length())]
    return sorted({*powers, num_samples})


def _pass_at(answers: Sequence[Answer], k: int) -> float:
    return pass_at_k(sum(answer.is_right for answer in answers), num_samples=len(answers), k=k)


def _majority_at(answers: Sequence[Answer], k: int) -> float:
    return majority_at_k([a.answer for a in answers], right=[a.is_right for a in answers], k=k)
