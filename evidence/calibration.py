"""Simulate equal arms and count how often the test of the tables rejects: python evidence/calibration.py.

The shares are written to evidence/results/calibration.json. 4,000 pairs of arms per case take half a minute.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.training_plan import RESULTS
from rgtrain.files import write_atomically
from rgtrain.stats import Block, crossed_contrast

PATH = RESULTS / "calibration.json"
NUM_RUNS = 4000
# The case's name, and the arguments of `simulated_blocks`.
CASES: dict[str, dict[str, Any]] = {
    "seeds differ": {"seed_spread": 0.3},
    "seeds differ much": {"seed_spread": 1.0},
    "seeds differ, and arms differ at each problem": {"seed_spread": 0.3, "problem_spread": 1.0},
    "one arm is untrained, and arms differ at each problem": {
        "seed_spread": 0.3,
        "base_spread": 0.0,
        "problem_spread": 0.5,
    },
    "nearly all problems are unsolved": {"seed_spread": 0.3, "center": -5.0},
    "16 problems": {"seed_spread": 0.3, "num_problems": 16, "num_strata": 1},
    "seeds do not differ": {"seed_spread": 1e-9},
    "one arm fails in a fifth of its trainings": {"seed_spread": 0.1, "failed_share": 0.2},
}
NUM_SEEDS = {"3 seeds": (3, 3), "5 seeds": (5, 5), "2 and 3 seeds": (2, 3)}


def main() -> None:
    """Run the command."""
    rejected = {
        case: {
            name: rejected_share(num_trainings=numbers, num_runs=NUM_RUNS, seed=1, **arguments)
            for name, numbers in NUM_SEEDS.items()
        }
        for case, arguments in CASES.items()
    }
    write_atomically(PATH, json.dumps({"num_runs": NUM_RUNS, "rejected": rejected}, indent=1) + "\n")


def rejected_share(*, num_runs: int, seed: int, **arguments: Any) -> float:
    """Return the share of simulated pairs of equal arms that differ significantly at 5 %.

    Args:
        num_runs: The number of pairs.
        seed: The seed of the simulation.
        arguments: Arguments of `simulated_blocks`.

    Returns:
        The share, in [0, 1].
    """
    random = numpy.random.default_rng(seed)
    contrasts = (crossed_contrast(simulated_blocks(random, **arguments)) for _ in range(num_runs))
    return sum(contrast.p_value < 0.05 for contrast in contrasts) / num_runs


def simulated_blocks(
    random: numpy.random.Generator,
    *,
    num_trainings: tuple[int, int],
    seed_spread: float,
    base_spread: float | None = None,
    problem_spread: float = 0.0,
    center: float = -1.4,
    num_problems: int = 40,
    num_strata: int = 2,
    failed_share: float = 0.0,
) -> list[Block]:
    """Return the blocks of two arms with the same expected accuracy.

    An answer's log odds are the sum of the problem's difficulty, the effect of the arm at the problem, the effect of
    the training, and that of the training at the problem. Each problem has 8 answers.

    Args:
        random: The source of random numbers.
        num_trainings: The number of trainings of each arm.
        seed_spread: The standard deviation of the effect of a training.
        base_spread: The one of the second arm, or 0 for an untrained model; None for `seed_spread`.
        problem_spread: The standard deviation of the effect of an arm at a problem.
        center: The mean difficulty, as the log odds of a right answer.
        num_problems: The problems of each dataset.
        num_strata: The number of datasets.
        failed_share: The expected share of the first arm's trainings that only give wrong answers. The second arm is
            worse at all problems by as much.

    Returns:
        The blocks, whose contrast is the difference between the arms.
    """
    spreads = {1: seed_spread, -1: seed_spread if base_spread is None else base_spread}
    effects = {
        sign: random.normal(0, spread, (number, 1))
        for (sign, spread), number in zip(spreads.items(), num_trainings, strict=True)
    }
    is_alive = random.random((num_trainings[0], 1)) >= failed_share
    blocks = []
    for stratum in range(num_strata):
        difficulty = random.normal(center + stratum, 1.5, num_problems)
        at_problem = random.normal(0, problem_spread, num_problems)
        for sign, effect in effects.items():
            both = random.normal(0, 0.3, (len(effect), num_problems))
            odds = difficulty + sign * at_problem + effect + both
            share = (is_alive if sign == 1 else 1 - failed_share) / (1 + numpy.exp(-odds))
            values = random.binomial(8, share) / 8
            blocks.append(Block(sign, stratum, sign / num_strata, values, bool(spreads[sign])))
    return blocks


if __name__ == "__main__":
    main()
