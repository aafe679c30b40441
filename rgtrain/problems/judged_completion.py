"""The information about a completion that reward functions receive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class JudgedCompletion:
    """A completion with its problem, its accuracy and the other completions of the same prompt.

    Attributes:
        text: `str`, the completion without special tokens. Untrusted text of a model.
        accuracy: `float` in [0, 1], the dataset's score of the extracted answer.
        num_tokens: `int`, the length of the completion in tokens.
        max_tokens: `int`, the maximum length of a completion in tokens.
        extracted_answer: `str`, the answer found in the text, or `None`.
        expected_answer: The answer of the problem's entry, usually a `str`, or `None`.
        finish_reason: `str`, "stop" if the model ended the completion, or "length" if it was cut off at `max_tokens`.
            `None` if unknown.
        question: `str`, the question of the problem.
        messages: `list[dict]`, the prompt as a chat, with `role` and `content` of each message.
        entry: `dict`, the problem's whole entry with question, answer and metadata.
        dataset: `str`, the name of the dataset.
        level: `int`, the level of the problem in the dataset's curriculum. `None` without a curriculum.
        step: `int`, the training step, which is 0 in the validation before training. `None` outside of training.
        group: `list[JudgedCompletion]`, all completions of the same prompt, including this one, in a fixed order.
    """

    text: str
    accuracy: float
    num_tokens: int
    max_tokens: int
    extracted_answer: str | None = None
    expected_answer: Any = None
    finish_reason: str | None = None
    question: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    entry: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    level: int | None = None
    step: int | None = None
    # A completion is in its own group.
    group: "Sequence[JudgedCompletion]" = field(default=(), repr=False, compare=False)


FIELDS = tuple(each.name for each in fields(JudgedCompletion))
