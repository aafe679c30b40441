"""Functions of the reward. An experiment names the first one as `pkg://my_tasks.rewards.brevity`."""

from rgtrain.problems.rewards import JudgedCompletion


def brevity(completion: JudgedCompletion, *, per_token: float = 0.001) -> float:
    """Penalise every token of a wrong answer."""
    return 0.0 if completion.accuracy == 1 else -per_token * completion.num_tokens


def style(text: str, extracted_answer: str | None) -> dict[str, float]:
    """Return whether the answer is one word, and the number of words of the completion."""
    return {"one_word": len((extracted_answer or "").split()) == 1, "words": len(text.split())}
