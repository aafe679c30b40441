"""The numbers over judged answers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rgtrain.evaluation.judged_answers import Answer
from rgtrain.stats import clustered_standard_error, effective_size, majority_at_k, mean, pass_at_k, share_interval


@dataclass(frozen=True)
class Measures:
    """Numbers over some answers; every answer counts alike.

    Standard errors are clustered by problem, and two problems that ask the same question are one: answers to it say
    the same thing twice. They are None where there is only one problem.
    strict_accuracy: the share of answers with score 1; strict_accuracy_interval: its 95 % confidence interval.
    mean_score: with partial credit, in [0, 1].
    pass_at, majority_at: by k, for k = 1, 2, 4, ... and the number of answers a problem: see pass_at_k, majority_at_k.
    share_without_answer: no answer could be extracted. share_truncated: cut off at max_tokens.
    num_scorer_errors: answers that could not be judged, by the kind of failure (see Score.error); they count 0.
    num_timeouts: those of them whose judging took too long.
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
    """A mean over problems, and its standard error (None for a single problem)."""

    mean: float
    error: float | None


def measure(answers: Sequence[Answer]) -> Measures:
    """The numbers over `answers`. Raises ValueError where there are none."""
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
    """`estimate(answers to one problem, k)` averaged over the problems, by k."""
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
