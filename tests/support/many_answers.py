"""10,000 completions of an environment's problems, and the rewards that training gives them.

Every export of an environment must give the same rewards, so that a model learns the same in every trainer.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from rgtrain.environments import EnvironmentProblem, TaskEnvironment
from rgtrain.problems import GroupRewards, Scorer, load_entry
from rgtrain.problems.group_rewards import FinishedCompletion

MAX_TOKENS = 64
# Cheap problems, with partial credit (letter_jumble, spell_backward), executed answers (countdown), and levels.
SETTINGS = {
    "mixture": {"chain_sum": {}, "spell_backward": {}, "letter_jumble": {}, "countdown": {"weight": 0.2}},
    "reward": {"accuracy": {}, "format": {"weight": 0.2}, "length": {"weight": 0.1}, "cosine": {"weight": 0.3}},
    "curriculum": {"datasets": {"spell_backward": {"num_levels": 2}}},
    "mixture_policy": {"name": "adaptive", "least": 0.25, "most": 4.0, "memory": 64},
    "scorer": {"num_workers": 2},
    "seed": 2,
    "size": 500,
    "validation_size": 4,
    "hold_out_shipped": False,
    "max_response_tokens": MAX_TOKENS,
}
NUM_PROBLEMS, GROUP_SIZE = 100, 100
_ANSWERS = (
    *("{right}", "{wrong}", " {right}\n", "{right}.", "{right} {right}", "", "\u3000", "{half}", "[{right}]"),
    *("\x00\u221e", "9" * 400),
)
_FORMS = (
    "<think>I add.</think> <answer>{answer}</answer>",
    "<answer>{answer}</answer>",
    "<think><answer>{answer}</answer></think>",
    "<answer>1</answer> or rather <answer>{answer}</answer>",
    "</think><answer>{answer}</answer> I hope so \U0001f642 \x00",
    "<think>a draft <answer>{answer}</answer>",
    "<answer><answer>{answer}</answer></answer>",
    "<Answer>{answer}</Answer>",
    "[THINK]a draft[/THINK]<answer>{answer}</answer>",
    "<answer>{answer}",
    "{answer}",
)
_PAIRS = list(itertools.product(_FORMS, _ANSWERS))


@dataclass(frozen=True)
class ScoredAnswer:
    """A completion, its length in tokens, and training's reward of it with its details and the extracted answer."""

    problem: EnvironmentProblem
    text: str
    num_tokens: int
    reward: float
    details: dict[str, float]
    answer: str | None


def completions(problem: EnvironmentProblem) -> Iterator[tuple[str, int]]:
    """Yield `GROUP_SIZE` completions of a problem, and a length in tokens for each."""
    generator = random.Random(problem.id)
    right = str(load_entry(problem.entry)["answer"])
    values = {"right": right, "wrong": generator.choice(["7", "-", "yes"]), "half": right[: len(right) // 2]}
    for form, answer in generator.sample(_PAIRS, GROUP_SIZE):
        yield form.replace("{answer}", answer.format(**values)), generator.randint(1, 2 * MAX_TOKENS)


def scored_by_training(environment: TaskEnvironment, scorer: Scorer) -> list[ScoredAnswer]:
    """Return 10,000 completions of an environment with `SETTINGS`, scored by training's own class.

    Args:
        environment: The environment.
        scorer: Judges the answers.

    Returns:
        The completions, whose groups are together.
    """
    rewards = GroupRewards(environment.config.reward.parts, scorer=scorer, max_tokens=MAX_TOKENS)

    async def scores() -> list[ScoredAnswer]:
        answers = []
        for index in range(NUM_PROBLEMS):
            problem = environment.problem(index)
            finished = [FinishedCompletion(text, length, None) for text, length in completions(problem)]
            scored = await rewards.compute(
                finished,
                load_entry(problem.entry),
                dataset=problem.dataset,
                messages=problem.messages,
                level=problem.level,
            )
            answers += [
                ScoredAnswer(problem, one.text, one.num_tokens, result.reward, result.details, result.answer)
                for one, result in zip(finished, scored, strict=True)
            ]
        return answers

    answers = asyncio.run(scores())
    assert len(answers) == 10_000
    assert len({answer.reward for answer in answers}) > 50
    return answers
