"""Judged answers and the numbers over them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rgtrain.evaluating.engine import Completion
from rgtrain.problems.evaluation_set import EvaluationDataset
from rgtrain.problems.mixture import Problem
from rgtrain.problems.scoring import Score
from rgtrain.stats import clustered_standard_error, mean


@dataclass(frozen=True)
class JudgedAnswer:
    """One completion of one problem and how it was judged. `answer` is None where none could be extracted."""

    dataset: EvaluationDataset
    problem: Problem
    repeat: int
    completion: Completion
    answer: str | None
    score: Score

    @property
    def is_right(self) -> bool:
        """Strictly: only a score of 1 counts, partial credit does not."""
        return self.score.accuracy == 1


@dataclass(frozen=True)
class Measures:
    """Numbers over some answers; every answer counts alike.

    Both standard errors are clustered by problem, and two problems that ask the same question are one: answers to it
    say the same thing twice. They are None where there is only one problem.
    mean_score: with partial credit, in [0, 1]. strict_accuracy: the share of answers with score 1.
    share_without_answer: no answer could be extracted. share_truncated: cut off at max_tokens.
    num_scorer_errors: answers that could not be judged, by the kind of failure (see Score.error); they count 0.
    """

    num_problems: int
    num_answers: int
    strict_accuracy: float
    strict_accuracy_error: float | None
    mean_score: float
    mean_score_error: float | None
    share_without_answer: float
    share_truncated: float
    mean_tokens: float
    num_scorer_errors: Mapping[str, int]


def measure(answers: Sequence[JudgedAnswer]) -> Measures:
    """The numbers over `answers`. Raises ValueError where there are none."""
    problems = [answer.problem.fingerprint for answer in answers]
    right = [float(answer.is_right) for answer in answers]
    scores = [answer.score.accuracy for answer in answers]
    return Measures(
        num_problems=len(set(problems)),
        num_answers=len(answers),
        strict_accuracy=mean(right),
        strict_accuracy_error=clustered_standard_error(right, clusters=problems),
        mean_score=mean(scores),
        mean_score_error=clustered_standard_error(scores, clusters=problems),
        share_without_answer=mean(answer.answer is None for answer in answers),
        share_truncated=mean(answer.completion.finish_reason == "length" for answer in answers),
        mean_tokens=mean(answer.completion.num_tokens for answer in answers),
        num_scorer_errors=dict(Counter(answer.score.failure for answer in answers if answer.score.failure)),
    )
