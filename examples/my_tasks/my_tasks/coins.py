"""A dataset of Reasoning Gym: the value of a handful of coins."""

import random
from dataclasses import dataclass
from typing import Any

from reasoning_gym import register_dataset
from reasoning_gym.coaching import BaseCurriculum, ScalarAttributeDefinition
from reasoning_gym.dataset import ProceduralDataset

_CENTS = {"pennies": 1, "nickels": 5, "dimes": 10, "quarters": 25}


@dataclass
class CoinsConfig:
    """The parameters of the dataset. A mixture sets them in `config`, except seed and size."""

    max_count: int = 9
    seed: int | None = None
    size: int = 500

    def validate(self) -> None:
        """Raise AssertionError if a parameter is out of range. Its text becomes the error message of the run."""
        assert self.max_count >= 2, "max_count must be at least 2"


class CoinsDataset(ProceduralDataset):
    """Problems such as "How many cents are 3 dimes and 7 pennies?"."""

    # `score_answer` only compares the answer. Without this line, each answer that may be code is judged in a separate
    # process, which takes milliseconds.
    executes_answers = False

    def __init__(self, config: CoinsConfig):
        super().__init__(config=config, seed=config.seed, size=config.size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # An item depends only on the seed and the index, so that a run can be repeated.
        rng = random.Random(self.seed + index)
        counts = {coin: rng.randint(2, self.config.max_count) for coin in rng.sample(list(_CENTS), 2)}
        return {
            "question": f"How many cents are {' and '.join(f'{count} {coin}' for coin, count in counts.items())}?",
            "answer": str(sum(count * _CENTS[coin] for coin, count in counts.items())),
            # A quantity under `difficulty` is a column of the results of an evaluation.
            "metadata": {"num_coins": sum(counts.values()), "difficulty": {"num_coins": self.config.max_count}},
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """Return the score of an answer, in [0, 1]. The answer is untrusted text; this runs in the sandbox."""
        text = (answer or "").strip().removesuffix("cents").strip()
        return float(text == entry["answer"])


class CoinsCurriculum(BaseCurriculum):
    """Levels from a handful of coins to a bag of them."""

    def __init__(self) -> None:
        super().__init__(CoinsCurriculum.__name__, CoinsConfig)
        self._define_attributes(
            ScalarAttributeDefinition(
                name="max_count",
                field_name="max_count",
                levels=[9, 20, 50, 100],
                description="Largest number of coins of a kind",
            )
        )


register_dataset("coins", CoinsDataset, CoinsConfig, CoinsCurriculum)
