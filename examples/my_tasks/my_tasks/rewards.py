"""A part of the reward. An experiment names it as `pkg://my_tasks.rewards.brevity`."""

from rgtrain.problems.rewards import JudgedCompletion


def brevity(completion: JudgedCompletion, *, per_token: float = 0.001) -> float:
    """Penalise every token of a wrong answer."""
    return 0.0 if completion.accuracy == 1 else -per_token * completion.num_tokens
