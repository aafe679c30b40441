"""The information about a completion that reward functions receive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class JudgedCompletion:
    """A completion with its problem, its accuracy and the other completions of the same prompt.

    Attributes:
        text (str): The completion, without special tokens. Untrusted text of a model.
        accuracy (float): The dataset's score of the extracted answer, in [0, 1].
        num_tokens (int): Length of the completion in tokens.
        max_tokens (int): Maximum length of a completion in tokens.
        extracted_answer (str | None): The answer found in the text; None if there is none.
        expected_answer (Any): The answer of the problem's entry, usually a string; None if the entry has none.
        finish_reason (str | None): "stop" if the model ended the completion, "length" if it was cut off at
            `max_tokens`, None if unknown.
        question (str): The question of the problem.
        messages (Sequence[Mapping[str, Any]]): The prompt as a chat, with `role` and `content` of each message.
        entry (Mapping[str, Any]): The problem's whole entry: question, answer and metadata.
        dataset (str): Name of the dataset.
        level (int | None): Level of the problem in the dataset's curriculum; None without a curriculum.
        step (int | None): The training step, 0 in the validation before training; None outside of training.
        group (Sequence[JudgedCompletion]): All completions of the same prompt, including this one, in a fixed order.
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
