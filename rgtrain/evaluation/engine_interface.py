"""What the parts that answer prompts have in common."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class EngineFailed(RuntimeError):
    """The engine gives no more completions. Those that it has given can be kept."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; `max_tokens` in tokens, temperature 0 is greedy."""

    max_tokens: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A prompt of which `num_samples` completions are wanted.

    `token_ids` are None where the model's tokenizer is not ours to have, as behind an endpoint; `label` says in
    messages where the prompt comes from.
    """

    messages: Sequence[Mapping[str, str]]
    token_ids: Sequence[int] | None
    num_samples: int
    label: str = ""


@dataclass(frozen=True)
class Completion:
    """One answer of a model. `finish_reason` is "length" where it was cut off at `max_tokens`."""

    text: str
    num_tokens: int
    finish_reason: str | None


class Engine(Protocol):
    """Anything that completes prompts."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Every completion of every prompt, with the prompt's position, in the order in which they get ready."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; it can't be used afterwards."""
        ...
