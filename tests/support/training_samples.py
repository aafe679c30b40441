"""Make rollouts for an update, with random tokens, advantages and log-probabilities."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt with all inputs of an update.

    The log-probabilities have one value per token of the response. They are those of the policy before the update, of
    the reference policy, and of vLLM during sampling.
    """

    prompt: list[int]
    response: list[int]
    advantage: float
    old_log_probs: list[float]
    ref_log_prob: list[float]
    rollout_log_probs: list[float]


def sample_group(
    *, prompt_length: int, response_lengths: Sequence[int], vocabulary_size: int, seed: int
) -> list[Sample]:
    """Return one sample per response length, all with the same random prompt.

    A model with random weights gives every token nearly the same probability. The log-probabilities are near that
    value, so that the policy loss clips some tokens but not all.
    """
    generator = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [generator.randrange(vocabulary_size) for _ in range(length)]

    def log_probs(length: int) -> list[float]:
        return [generator.gauss(-math.log(vocabulary_size), 0.2) for _ in range(length)]

    prompt = tokens(prompt_length)
    return [
        Sample(prompt, tokens(length), generator.gauss(0, 1), log_probs(length), log_probs(length), log_probs(length))
        for length in response_lengths
    ]
