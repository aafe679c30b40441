"""Aggregate judged answers: accuracy, mean score, pass@k, majority@k and error counts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rgtrain.evaluation.judged_answers import Answer
from rgtrain.stats import clustered_standard_error, effective_size, majority_at_k, mean, pass_at_k, share_interval


@dataclass(frozen=True)
class Measures:
    """Aggregates over a set of answers, all with equal weight.

    Standard errors are clustered by problem, and are None for a single problem. Two problems that ask the same question
    are one cluster, because answers to them are not independent.

    Attributes:
        num_problems: The number of distinct questions.
        num_answers: The number of answers.
        strict_accuracy: The share of answers with score 1.
        strict_accuracy_error: The standard error of `strict_accuracy`.
        strict_accuracy_interval: The 95 % confidence interval of `strict_accuracy`.
        mean_score: The mean score, which includes partial credit, in [0, 1].
        mean_score_error: The standard error of `mean_score`.
        pass_at: pass@k by k (see pass_at_k), for powers of 2 and the number of answers per problem.
        majority_at: majority@k by k (see majority_at_k), for the same k.
        share_without_answer: The share of completions from which no answer could be extracted.
        share_truncated: The share of completions that were cut off at max_tokens.
        mean_tokens: The mean length of the completions, in tokens.
        num_timeouts: The number of answers whose judging took too long.
        num_scorer_errors: The number of answers that could not be judged, by kind of failure (see Score.error),
            timeouts included. Their score is 0.
    """

    num_problems: int
    num_answers: int
    strict_accuracy: float
    strict_accuracy_error: float | None
    strict_accuracy_interval: tuple[float, float]
    mean_score: float
    mean_score_error: float | None
    pass_at: Mapping[str, "Estimate"]
    majority_at: Mapping[str, "Estimate"]
    share_without_answer: float
    share_truncated: float
    mean_tokens: float
    num_timeouts: int
    num_scorer_errors: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its standard error, which is None for a single problem."""

    mean: float
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
    fingerprints = [answer.fingerprint for answer in answers]
    right = [float(answer.is_right) for answer in answers]
    scores = [answer.score for answer in answers]
    accuracy, error = mean(right), clustered_standard_error(right, clusters=fingerprints)
    num_problems = len(set(fingerprints))
    failures = Counter(answer.failure for answer in answers if answer.failure)
    return Measures(
        num_problems=num_problems,
        num_answers=len(answers),
        strict_accuracy=accuracy,
        strict_accuracy_error=error,
        strict_accuracy_interval=share_interval(
            accuracy, num_independent=effective_size(accuracy, error, num_clusters=num_problems)
        ),
        mean_score=mean(scores),
        mean_score_error=clustered_standard_error(scores, clusters=fingerprints),
        pass_at=_by_k(answers, _pass_at),
        majority_at=_by_k(answers, _majority_at),
        share_without_answer=mean(answer.answer is None for answer in answers),
        share_truncated=mean(answer.finish_reason == "length" for answer in answers),
        mean_tokens=mean(answer.tokens for answer in answers),
        num_timeouts=failures["timeout"],
        num_scorer_errors=dict(failures),
    )


def _by_k(answers: Sequence[Answer], estimate: Callable[[Sequence[Answer], int], float]) -> dict[str, Estimate]:
    """Average `estimate(answers to one problem, k)` over the problems, for each k."""
    by_problem: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_problem[answer.problem].append(answer)
    groups = list(by_problem.values())
    clusters = [group[0].fingerprint for group in groups]
    estimates = {}
    for k in _ks(min(map(len, groups))):
        values = [estimate(group, k) for group in groups]
        estimates[str(k)] = Estimate(mean(values), clustered_standard_error(values, clusters=clusters))
    return estimates


def _ks(num_samples: int) -> list[int]:
    powers = [2**power for power in range(num_samples.bit_length())]
    return sorted({*powers, num_samples})


def _pass_at(answers: Sequence[Answer], k: int) -> float:
    return pass_at_k(sum(answer.is_right for answer in answers), num_samples=len(answers), k=k)


def _majority_at(answers: Sequence[Answer], k: int) -> float:
    return majority_at_k([a.answer for a in answers], right=[a.is_right for a in answers], k=k)
