"""The record of a judged answer, and its line in results.jsonl."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rgtrain.evaluation.checked_lines import (
    Check,
    is_count,
    is_count_or_none,
    is_finite,
    is_text,
    is_text_or_none,
    parse_line,
)
from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.evaluation_prompts import PromptedProblem
from rgtrain.evaluation.received_completions import is_refusal
from rgtrain.problems.difficulty import difficulty
from rgtrain.problems.entries import dump_entry
from rgtrain.problems.scoring import FAILURES, Score


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
        values = {key: value for key, value in vars(self).items() if key not in _TEXTS or value is not None}
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
        return cls(**parse_line(line, _CHECKS, optional=_OPTIONAL))


# Older versions wrote neither `difficulty` nor `refused`. The others are left out if texts are not kept.
_TEXTS = ("question", "completion", "entry")
_OPTIONAL = (*_TEXTS, "difficulty", "refused")


def _is_difficulty(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_finite, value.values()))


_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("problem", "repeat", "seed", "index"), is_count),
    **dict.fromkeys(("category", "dataset", "fingerprint"), is_text),
    **dict.fromkeys(("answer", "finish_reason", *_TEXTS), is_text_or_none),
    "score": lambda value: is_finite(value) and 0 <= value <= 1,
    "error": lambda value: value is None or (is_text(value) and Score(0, value).failure in FAILURES),
    "tokens": is_count_or_none,
    "difficulty": _is_difficulty,
    "refused": is_refusal,
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
        difficulty={name: value for name, value in difficulty(problem.entry).items() if is_finite(value)},
        refused=completion.refused,
    )
