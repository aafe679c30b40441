"""A dataset of Reasoning Gym: the value of a handful of coins."""

import random
from dataclasses import dataclass
from typing import Any

from reasoning_gym import register_dataset
from reasoning_gym.coaching import BaseCurriculum, ScalarAttributeDefinition
from reasoning_gym.dataset import ProceduralDataset

_CENTS = {"penny": 1, "nickel": 5, "dime": 10, "quarter": 25}


@dataclass
class CoinsConfig:
    """The parameters of the dataset. A mixture sets them in `config`, except seed and size."""

    max_coins: int = 3
    seed: int | None = None
    size: int = 500

    def validate(self) -> None:
        """Raise AssertionError if a parameter is out of range. Its text becomes the error message of the run."""
        assert self.max_coins >= 1, "max_coins must be at least 1"


class CoinsDataset(ProceduralDataset):
    """Problems such as "How many cents are these coins together: dime, penny?"."""

    # `score_answer` only compares the answer. Without this line, each answer that may be code is judged in a separate
    # process, which takes milliseconds.
    executes_answers = False

    def __init__(self, config: CoinsConfig):
        super().__init__(config=config, seed=config.seed, size=config.size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # An item depends only on the seed and the index, so that a run can be repeated.
        rng = random.Random(self.seed + index)
        coins = rng.choices(list(_CENTS), k=rng.randint(1, self.config.max_coins))
        return {
            "question": f"How many cents are these coins together: {', '.join(coins)}?",
            "answer": str(sum(_CENTS[coin] for coin in coins)),
            # A quantity under `difficulty` is a column of the results of an evaluation.
            "metadata": {"num_coins": len(coins), "difficulty": {"num_coins": self.config.max_coins}},
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """Return the score of an answer, in [0, 1]. The answer is untrusted text; this runs in the sandbox."""
        text = (answer or "").strip().removesuffix("cents").strip()
        return float(text == entry["answer"])


class CoinsCurriculum(BaseCurriculum):
    """Levels from one coin to six."""

    def __init__(self) -> None:
        super().__init__(CoinsCurriculum.__name__, CoinsConfig)
        self._define_attributes(
            ScalarAttributeDefinition(
                name="max_coins",
                field_name="max_coins",
                levels=[1, 2, 3, 4, 6],
                description="Largest number of coins",
            )
        )


register_dataset("coins", CoinsDataset, CoinsConfig, CoinsCurriculum)
