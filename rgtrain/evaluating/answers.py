"""One judged answer, and its line in results.jsonl."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from rgtrain.evaluating.engine import Completion
from rgtrain.evaluating.prompts import PromptedProblem
from rgtrain.problems.difficulty import difficulty
from rgtrain.problems.entries import dump_entry
from rgtrain.problems.scoring import Score


@dataclass(frozen=True)
class Answer:
    """One answer to one problem and how it was judged.

    problem: the problem's position in the evaluation; repeat: which of the answers to it this is, from 0.
    fingerprint: equal for two problems exactly if dataset and question are. difficulty: see `difficulty`.
    answer: as extracted from the completion, None where there is none. score: in [0, 1]. error: see Score.
    tokens: of the completion. finish_reason: "length" where it was cut off.
    question, completion and entry (see dump_entry) are None where they were not to be kept.
    """

    problem: int
    repeat: int
    category: str
    dataset: str
    seed: int
    index: int
    fingerprint: str
    answer: str | None
    score: float
    error: str | None
    tokens: int
    finish_reason: str | None
    question: str | None = None
    completion: str | None = None
    entry: str | None = None
    difficulty: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Strictly: only a score of 1 counts, partial credit does not."""
        return self.score == 1

    @property
    def failure(self) -> str | None:
        """The kind of error, see FAILURES, or None."""
        return Score(self.score, self.error).failure

    @property
    def key(self) -> tuple[int, int]:
        """What no two answers of an evaluation share."""
        return self.problem, self.repeat

    def to_line(self) -> bytes:
        """The answer as one line of JSON with its end of line; lone surrogates become the escapes JSON has for them."""
        values = {key: value for key, value in vars(self).items() if key not in _OPTIONAL or value is not None}
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Answer":
        """The answer that `to_line` wrote. Raises ValueError or TypeError for anything else."""
        answer = cls(**json.loads(line))
        if not isinstance(answer.problem, int) or not isinstance(answer.repeat, int):
            raise TypeError("problem and repeat are no whole numbers")
        return answer


_OPTIONAL = ("question", "completion", "entry")


def judged(
    prompted: PromptedProblem,
    *,
    repeat: int,
    completion: Completion,
    answer: str | None,
    score: Score,
    with_text: bool = True,
    with_entry: bool = True,
) -> Answer:
    """The record of one answer. Without text neither question nor completion are kept, without entry no entry."""
    problem = prompted.problem
    return Answer(
        problem=prompted.number,
        repeat=repeat,
        category=prompted.dataset.category,
        dataset=prompted.dataset.name,
        seed=problem.seed,
        index=problem.index,
        fingerprint=problem.fingerprint,
        answer=answer,
        score=score.accuracy,
        error=score.error,
        tokens=completion.num_tokens,
        finish_reason=completion.finish_reason,
        question=problem.question if with_text else None,
        completion=completion.text if with_text else None,
        entry=dump_entry(dict(problem.entry)) if with_entry else None,
        difficulty=difficulty(problem.entry),
    )
