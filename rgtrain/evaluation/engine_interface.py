"""The interface that all engines share: prompts, sampling parameters and completions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class EngineFailed(RuntimeError):
    """The engine can't generate more completions. Those that it has yielded can be kept."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        max_tokens: The maximum length of a completion, in tokens.
        temperature: 0 means greedy decoding.
        top_p: The probability mass of nucleus sampling, in (0, 1].
    """

    max_tokens: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A prompt and the number of completions to generate.

    Attributes:
        messages: The chat messages, each with a role and content.
        token_ids: The rendered messages; None for an endpoint, which renders messages itself.
        num_samples: The number of completions.
        label: The prompt's origin, for error messages.
    """

    messages: Sequence[Mapping[str, str]]
    token_ids: Sequence[int] | None
    num_samples: int
    label: str = ""


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        text: The generated text.
        num_tokens: Its length in tokens.
        finish_reason: "length" if it was cut off at `max_tokens`; None if the engine gives no reason.
    """

    text: str
    num_tokens: int
    finish_reason: str | None


class Engine(Protocol):
    """Anything that completes prompts."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Yield every completion of every prompt, with the prompt's position, as soon as it is finished."""
        ...

    def close(self) -> None:
        """Release the engine's resources. It can't be used afterwards."""
        ...
