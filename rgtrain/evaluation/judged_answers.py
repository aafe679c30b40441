"""The record of a judged answer, and its line in results.jsonl."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rgtrain.evaluation.engine_interface import MAX_REFUSAL_CHARS, Completion
from rgtrain.evaluation.evaluation_prompts import PromptedProblem
from rgtrain.problems.difficulty import difficulty
from rgtrain.problems.entries import dump_entry
from rgtrain.problems.scoring import Score


@dataclass(frozen=True)
class Answer:
    """One answer to one problem, and its score.

    Attributes:
        problem: The problem's position in the evaluation.
        repeat: The number of this answer among the answers to the problem, from 0.
        category: The category of the dataset.
        dataset: The name of the dataset.
        seed: The seed of the dataset.
        index: The problem's index in the dataset.
        fingerprint: Equal for two problems exactly if dataset and question are.
        answer: The answer extracted from the completion; None if there is none.
        score: The score, in [0, 1].
        error: The reason if the answer could not be judged (see Score.error).
        tokens: The length of the completion, in tokens; None if the endpoint did not report it.
        finish_reason: "length" if the completion was cut off.
        question: The question; None if texts are not kept.
        completion: The completion, with its reasoning in front (see Completion.full_text); None if texts are not kept.
        entry: The problem's entry (see dump_entry); None if entries are not kept.
        difficulty: The problem's difficulty (see `difficulty`).
        refused: The endpoint's reason for refusing the request (see Completion.refused); empty for an answer. A refused
            request has the score 0, but counts as a failed request instead of a wrong answer.
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
    tokens: int | None
    finish_reason: str | None
    question: str | None = None
    completion: str | None = None
    entry: str | None = None
    difficulty: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the score is 1. Partial credit does not count."""
        return self.score == 1

    @property
    def failure(self) -> str | None:
        """The kind of error (see FAILURES); None without an error."""
        return Score(self.score, self.error).failure

    @property
    def key(self) -> tuple[int, int]:
        """The problem and repeat, which identify an answer within an evaluation."""
        return self.problem, self.repeat

    def to_line(self) -> bytes:
        """Return the answer as one line of JSON, with a newline at its end. Lone surrogates become JSON escapes."""
        values = {key: value for key, value in vars(self).items() if key not in _OPTIONAL or value is not None}
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Answer":
        """Parse a line that `to_line` wrote.

        Args:
            line: The line, with or without its newline.

        Returns:
            The answer.

        Raises:
            ValueError: The line is not an answer.
        """
        try:
            answer = cls(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"it is not an answer, {type(error).__name__}: {error!s:.100}") from error
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
    **dict.fromkeys(("problem", "repeat", "seed", "index"), _is_count),
    "tokens": lambda value: value is None or _is_count(value),
    "refused": lambda value: isinstance(value, str) and len(value) <= MAX_REFUSAL_CHARS,
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
    """Return the record of a judged answer.

    Args:
        prompted: The problem.
        repeat: The number of this answer among the answers to the problem, from 0.
        completion: The completion with the answer.
        answer: The answer extracted from the completion; None if there is none.
        score: The answer's score.
        with_text: Whether to keep the question and completion.
        with_entry: Whether to keep the problem's entry.

    Returns:
        The record.
    """
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
        completion=completion.full_text if with_text else None,
        entry=dump_entry(dict(problem.entry)) if with_entry else None,
        difficulty=difficulty(problem.entry),
        refused=completion.refused,
    )
