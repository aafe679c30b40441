"""Reward functions of control arms, which teach nothing about the right answer."""

import hashlib

from rgtrain.problems.judged_completion import JudgedCompletion


def random_reward(completions: list[JudgedCompletion], *, seed: int) -> list[float]:
    """Reward each completion of a prompt with 0 or 1 at random, each with probability 1/2.

    The value depends on the seed, the step, the question and the position in the group, but not on the text. Identical
    completions of a group therefore get different values, and a run with the same seed repeats them.

    Args:
        completions: All completions of a prompt.
        seed: The seed.

    Returns:
        0 or 1 for each completion.
    """
    first = completions[0]
    keys = [f"{seed}/{first.step}/{first.dataset}/{first.question}/{place}" for place in range(len(completions))]
    return [float(hashlib.sha256(key.encode()).digest()[0] & 1) for key in keys]
