"""One judged answer, and its line in results.jsonl."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.evaluation_prompts import PromptedProblem
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
        """Read the answer that `to_line` wrote.

        Raises:
            ValueError: The line is anything else.
        """
        try:
            answer = cls(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"it is no answer ({type(error).__name__}: {error!s:.100})") from error
        for name, is_allowed in _ALLOWED.items():
            if not is_allowed(getattr(answer, name)):
                raise ValueError(f"{name} is {getattr(answer, name)!r:.60}")
        return answer


_OPTIONAL = ("question", "completion", "entry")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


_ALLOWED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("problem", "repeat", "seed", "index", "tokens"), _is_count),
    **dict.fromkeys(("category", "dataset", "fingerprint"), _is_text),
    **dict.fromkeys(("answer", "error", "finish_reason", *_OPTIONAL), _is_text_or_none),
    "score": _is_number,
    "difficulty": lambda value: isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values()),
}


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
