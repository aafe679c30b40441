"""Completions that are received but not judged yet. They are kept on disk until their answers are."""

import json
from dataclasses import dataclass

from rgtrain.evaluation.checked_lines import Check, is_count, is_count_or_none, is_text, is_text_or_none, parse_line
from rgtrain.evaluation.engine_interface import MAX_REFUSAL_CHARS, Completion


@dataclass(frozen=True)
class ReceivedCompletion:
    """A completion of one prompt of an evaluation.

    Attributes:
        problem: The problem's position in the evaluation.
        repeat: The number of this answer among the answers to the problem, from 0.
        fingerprint: Equal for two problems exactly if dataset and question are.
        completion: The completion.
    """

    problem: int
    repeat: int
    fingerprint: str
    completion: Completion

    @property
    def key(self) -> tuple[int, int]:
        """The problem and repeat, which identify an answer within an evaluation."""
        return self.problem, self.repeat

    def to_line(self) -> bytes:
        """Return the completion as one line of JSON, with a newline at its end."""
        values = {"problem": self.problem, "repeat": self.repeat, "fingerprint": self.fingerprint}
        line = json.dumps(values | vars(self.completion), ensure_ascii=False)
        return line.encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "ReceivedCompletion":
        """Parse a line that `to_line` wrote.

        Args:
            line: The line, with or without its newline.

        Returns:
            The completion.

        Raises:
            ValueError: The line is not a completion.
        """
        values = parse_line(line, _CHECKS)
        identity = {name: values.pop(name) for name in ("problem", "repeat", "fingerprint")}
        return cls(**identity, completion=Completion(**values))


def is_refusal(value: object) -> bool:
    """Return whether `value` is the reason of a refused request, or empty."""
    return isinstance(value, str) and len(value) <= MAX_REFUSAL_CHARS


_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("problem", "repeat"), is_count),
    **dict.fromkeys(("fingerprint", "text", "reasoning_text"), is_text),
    "num_tokens": is_count_or_none,
    "finish_reason": is_text_or_none,
    "refused": is_refusal,
}
