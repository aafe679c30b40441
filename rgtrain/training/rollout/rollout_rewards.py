"""Compute the rewards of completions from the scorer's accuracy and the configured reward parts."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from rgtrain.problems import Scorer, combine, extract_answer, parse_reward
from rgtrain.problems.rewards import JudgedCompletion
from rgtrain.problems.scoring import FAILURES, Score


class Rewards:
    """Computes the rewards of finished completions while other completions are still being generated."""

    def __init__(self, parts: Mapping[str, Any], *, scorer: Scorer, max_tokens: int):
        """Prepare the reward.

        Args:
            parts: The configuration's `reward.parts`.
            scorer: A running scorer.
            max_tokens: The maximum length of a completion.

        Raises:
            ConfigError: A part is unknown, or its arguments are invalid.
        """
        self._parts = parse_reward(parts)
        self._scorer = scorer
        self._max_tokens = max_tokens

    async def compute(
        self,
        texts: Sequence[str],
        lengths: Sequence[int],
        entry: Mapping[str, Any],
        *,
        thinking_begun: bool = False,
    ) -> list[tuple[float, dict[str, float]]]:
        """Score the completions of a problem.

        Args:
            texts: The completions.
            lengths: Their lengths in tokens.
            entry: The problem's entry in Reasoning Gym.
            thinking_begun: Whether the prompt ends with an opening think tag.

        Returns:
            The reward of each completion, and its details by name. All details are numbers.
        """
        answers = [extract_answer(text, thinking_begun=thinking_begun) for text in texts]
        scores = [self._scorer.submit(answer, entry) for answer in answers]
        judged = await asyncio.gather(*(asyncio.wrap_future(score) for score in scores))
        return [
            self._reward(text, length, answer, score)
            for text, length, answer, score in zip(texts, lengths, answers, judged, strict=True)
        ]

    def _reward(self, text: str, length: int, answer: str | None, score: Score) -> tuple[float, dict[str, float]]:
        reward, parts = combine(self._parts, JudgedCompletion(text, score.accuracy, length, self._max_tokens))
        details = {
            # verl uses the name "acc" for the core validation metric.
            "acc": score.accuracy,
            "solved": float(score.accuracy == 1),
            "answered": float(answer is not None),
            "response_length": float(length),
            "score_seconds": score.seconds,
        }
        details.update({f"reward_{name}": value for name, value in parts.items()})
        details.update(failure_counts(score))
        return reward, details


def failure_counts(score: Score) -> dict[str, float]:
    """Return `num_timeout`, `num_crash` and so on: 1 for the kind of failure of `score`, and 0 for all others."""
    return {f"num_{failure.replace(' ', '_')}": float(score.failure == failure) for failure in FAILURES}
