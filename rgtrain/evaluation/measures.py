"""Aggregate judged answers: accuracy, mean score, pass@k, majority@k and error counts."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rgtrain.evaluation.judged_answers import Answer
from rgtrain.stats import clustered_standard_error, effective_size, majority_at_k, mean, mean_interval, pass_at_k


@dataclass(frozen=True)
class Measures:
    """Aggregates over a set of answers, all with equal weight.

    Requests that the endpoint refused count only in `num_problems`, `num_answers` and `num_refused`. If all of them
    were refused, a mean or share is None.

    Standard errors and intervals are clustered by question, because answers to one question are not independent.
    Several problems may ask the same question. A standard error is None for a single question.

    Attributes:
        num_problems: The number of problems.
        num_questions: The number of distinct questions among the problems.
        num_answers: The number of answers, including refused requests.
        num_refused: The number of requests that the endpoint refused for good.
        strict_accuracy: The share of answers with score 1.
        strict_accuracy_error: The standard error of `strict_accuracy`.
        strict_accuracy_interval: The 95 % confidence interval of `strict_accuracy` (see mean_interval).
        effective_sample_size: The number of independent answers that would estimate `strict_accuracy` equally well (see
            effective_size).
        mean_score: The mean score, which includes partial credit, in [0, 1].
        mean_score_error: The standard error of `mean_score`.
        mean_score_interval: The 95 % confidence interval of `mean_score`.
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
    num_questions: int
    num_answers: int
    num_refused: int
    strict_accuracy: float | None
    strict_accuracy_error: float | None
    strict_accuracy_interval: tuple[float, float] | None
    effective_sample_size: float | None
    mean_score: float | None
    mean_score_error: float | None
    mean_score_interval: tuple[float, float] | None
    pass_at: Mapping[str, "Estimate"]
    majority_at: Mapping[str, "Estimate"]
    share_without_answer: float | None
    share_truncated: float | None
    mean_tokens: float | None
    num_timeouts: int
    num_scorer_errors: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95 % confidence interval.

    Attributes:
        mean: The mean; None without values.
        error: The standard error; None for fewer than two questions.
        interval: The interval; None without values.
    """

    mean: float | None
    error: float | None
    interval: tuple[float, float] | None


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
    accuracy = _estimate(right, clusters=fingerprints)
    mean_score = _estimate(scores, clusters=fingerprints)
    failures = Counter(answer.failure for answer in answered if answer.failure)
    return Measures(
        num_problems=len({answer.problem for answer in answers}),
        num_questions=len({answer.fingerprint for answer in answers}),
        num_answers=len(answers),
        num_refused=len(answers) - len(answered),
        strict_accuracy=accuracy.mean,
        strict_accuracy_error=accuracy.error,
        strict_accuracy_interval=accuracy.interval,
        effective_sample_size=effective_size(right, clusters=fingerprints) if right else None,
        mean_score=mean_score.mean,
        mean_score_error=mean_score.error,
        mean_score_interval=mean_score.interval,
        pass_at=_by_k(answers, "pass"),
        majority_at=_by_k(answers, "majority"),
        share_without_answer=_mean_or_none([answer.answer is None for answer in answered]),
        share_truncated=_mean_or_none([answer.finish_reason == "length" for answer in answered]),
        mean_tokens=_mean_or_none([answer.tokens for answer in answered if answer.tokens is not None]),
        num_timeouts=failures["timeout"],
        num_scorer_errors=dict(failures),
    )


def _mean_or_none(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _estimate(values: Sequence[float], *, clusters: Sequence[str]) -> Estimate:
    if not values:
        return Estimate(None, None, None)
    return Estimate(
        mean(values),
        clustered_standard_error(values, clusters=clusters),
        mean_interval(values, clusters=clusters),
    )


def right_by_question(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Return 1 for each right and 0 for each wrong answer, by the question's fingerprint, without refused requests."""
    values: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if not answer.refused:
            values[answer.fingerprint].append(float(answer.is_right))
    return values


def at_k_by_question(answers: Sequence[Answer], name: str, *, k: int) -> dict[str, list[float]]:
    """Compute pass@k or majority@k of each problem.

    Args:
        answers: Judged answers, in any order.
        name: "pass" or "majority".
        k: The number of answers to draw.

    Returns:
        The values of the problems with at least k answers that were not refused, by the question's fingerprint.
    """
    estimate = {"pass": _pass_at, "majority": _majority_at}[name]
    values: dict[str, list[float]] = defaultdict(list)
    for group in _by_problem(answers):
        answered = [answer for answer in group if not answer.refused]
        if len(answered) >= k:
            values[group[0].fingerprint].append(estimate(answered, k))
    return values


def values_of_k(answers: Sequence[Answer]) -> list[int]:
    """Return the powers of 2 up to the number of answers per problem, and that number."""
    # Refused requests don't change the values of k, so that they are the same for all datasets.
    num_samples = min(map(len, _by_problem(answers)))
    return sorted({*(2**power for power in range(num_samples.bit_length())), num_samples})


def _by_problem(answers: Sequence[Answer]) -> list[list[Answer]]:
    groups: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.problem].append(answer)
    return list(groups.values())


def _by_k(answers: Sequence[Answer], name: str) -> dict[str, Estimate]:
    estimates = {}
    for k in values_of_k(answers):
        by_question = at_k_by_question(answers, name, k=k)
        clusters = [question for question, values in by_question.items() for _ in values]
        estimates[str(k)] = _estimate([value for values in by_question.values() for value in values], clusters=clusters)
    return estimates


def _pass_at(answers: Sequence[Answer], k: int) -> float:
    return pass_at_k(sum(answer.is_right for answer in answers), num_samples=len(answers), k=k)


def _majority_at(answers: Sequence[Answer], k: int) -> float:
    return majority_at_k([a.answer for a in answers], right=[a.is_right for a in answers], k=k)
