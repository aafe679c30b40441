"""A prompt that depends on the problem. An experiment names it as `pkg://my_tasks.prompts.ask`."""

from rgtrain.problems.prompts import PromptedQuestion


def ask(problem: PromptedQuestion) -> str:
    """Return the system prompt for a problem. The same problem must always get the same prompt."""
    kind = "number" if problem.dataset == "coins" else "word"
    return f"Answer in one {kind}, between <answer> and </answer>."
