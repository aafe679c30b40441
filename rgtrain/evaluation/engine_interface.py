"""The interface that all engines share: prompts, sampling parameters and completions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class EngineFailed(RuntimeError):
    """The engine can't generate more completions. Those that it has yielded can be kept."""


# The longest reason for a refusal. Endpoints may repeat a whole prompt in it.
MAX_REFUSAL_CHARS = 200


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        max_tokens: The maximum length of a completion, in tokens.
        temperature: 0 means greedy decoding.
        top_p: The probability mass of nucleus sampling, in (0, 1].
        top_k: The number of most likely tokens to sample from; None for all.
        min_p: The least probability of a token to sample, as a share of the most likely token's, in [0, 1].
        repetition_penalty: Divides the logits of tokens that occurred, if they are positive; 1 for no penalty.
        presence_penalty: Subtracted from the logits of tokens that the completion contains, in [-2, 2].
        frequency_penalty: The same for each occurrence of a token, in [-2, 2].
        stop: Texts that end a completion. They are not part of it.
    """

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()


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
    """One completion, or the record that an endpoint refuses to give one.

    Attributes:
        text: The generated text.
        num_tokens: The length of the whole completion in tokens, including `reasoning_text`; None if the endpoint does
            not report it.
        finish_reason: "length" if it was cut off at `max_tokens`; None if the engine gives no reason.
        reasoning_text: Reasoning that the endpoint returned apart from `text`; empty if there is none.
        refused: The endpoint's reason for refusing this request for good, on one printable line of at most
            `MAX_REFUSAL_CHARS` characters; empty for a completion.
    """

    text: str
    num_tokens: int | None
    finish_reason: str | None
    reasoning_text: str = ""
    refused: str = ""

    @property
    def full_text(self) -> str:
        """The text with the reasoning in front of it, as the model wrote it: in a closed think part."""
        return f"<think>\n{self.reasoning_text}\n</think>\n{self.text}" if self.reasoning_text else self.text


class Engine(Protocol):
    """Anything that completes prompts."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Yield every completion of every prompt, with the prompt's position, as soon as it is finished."""
        ...

    def close(self) -> None:
        """Release the engine's resources. It can't be used afterwards."""
        ...
