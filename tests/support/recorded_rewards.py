"""A reward function that records the completions that it gets."""

from collections.abc import Sequence

from rgtrain.problems.judged_completion import JudgedCompletion

GROUPS: list[Sequence[JudgedCompletion]] = []


def record(completions: Sequence[JudgedCompletion], *, scale: float = 1.0) -> list[float]:
    """Return `scale` for the shortest completions of a prompt, and 0 for the others."""
    GROUPS.append(completions)
    shortest = min(completion.num_tokens for completion in completions)
    return [scale * (completion.num_tokens == shortest) for completion in completions]
