"""Problems that the base never solves in 256 tries, and pass@k before and after training."""

from functools import cache
from typing import NamedTuple

import numpy
from numpy import float64
from numpy.typing import NDArray

from evidence.measured import Arm, Measured
from evidence.training_plan import BASE, BOUNDARY, UNTRAINED, ModelPlan
from rgtrain.stats import Block, Contrast, crossed_contrast, false_discovery_p_values, fisher_exact_gain, pass_at_k

# The expected share of false discoveries is at most this.
MOST_FALSE = 0.05


class Discoveries(NamedTuple):
    """Problems of a category that the base never solved in its first draw.

    Attributes:
        num_problems: The number of all problems of the category.
        num_unsolved: The number of those that the first draw never solved.
        by_chance: The number of these that the second draw of the base solved at least once.
        false: The number of these that the second draw would count as discoveries.
        solved: The number of these that each training solved at least once.
        discovered: The number of discoveries of each training.
    """

    num_problems: int
    num_unsolved: int
    by_chance: int
    false: int
    solved: list[int]
    discovered: list[int]


def trained_arm(model: ModelPlan, category: str, arm: str) -> Arm:
    """Return the arm that answered the boundary's problems."""
    return Arm(model.name, f"{BOUNDARY}_{category}", arm)


def base_arm(model: ModelPlan) -> Arm:
    """Return the two draws of the model without training."""
    return Arm(model.name, f"{BOUNDARY}_{BASE}", UNTRAINED)


def counts(measured: Measured, arm: Arm, category: str) -> tuple[NDArray[float64], int]:
    """Return the number of right answers to each problem of a category, and the number of answers to each.

    Args:
        measured: The records.
        arm: An arm with records.
        category: The category.

    Returns:
        Counts of shape trainings x problems, and the number of answers.
    """
    datasets = measured.programme.datasets(BOUNDARY, group=category)
    samples = {
        record["evaluation"][dataset]["samples"] for record in measured.records[arm].values() for dataset in datasets
    }
    [num_samples] = samples
    shares = numpy.concatenate([measured.shares(arm, dataset) for dataset in datasets], axis=1)
    return numpy.rint(shares * num_samples), num_samples


def has_base(measured: Measured, model: ModelPlan) -> bool:
    """Return whether the base has both draws."""
    return measured.num_seeds(base_arm(model)) >= 2


def discoveries(measured: Measured, model: ModelPlan, *, category: str, arm: str) -> Discoveries | None:
    """Count the problems that the base never solved in its first draw and that trainings solve.

    A problem is discovered by a training if it is solved significantly more often than in the second draw of the base,
    which was not used to choose the problem. The test is Fisher's, and Benjamini and Hochberg's method limits the
    expected share of false discoveries among those of a training to 5 %. The reverse test, of the second draw against
    the first, shows the number of discoveries without any training. It is too large, because the problems were chosen
    by the first draw.

    Args:
        measured: The records.
        model: The model.
        category: The category.
        arm: The trained arm.

    Returns:
        The counts, or None without records.
    """
    trained = trained_arm(model, category, arm)
    if not has_base(measured, model) or not measured.num_seeds(trained):
        return None
    (first, second, *_), num_samples = counts(measured, base_arm(model), category)
    unsolved = first == 0
    after, num_after = counts(measured, trained, category)

    def discovered(before: NDArray[float64], solved: NDArray[float64], num_solved_of: int) -> int:
        p_values = [
            fisher_exact_gain(int(old), int(new), num_before=num_samples, num_after=num_solved_of)
            for old, new in zip(before[unsolved], solved[unsolved], strict=True)
        ]
        return sum(adjusted <= MOST_FALSE for adjusted in false_discovery_p_values(p_values))

    return Discoveries(
        len(first),
        int(unsolved.sum()),
        int((second[unsolved] > 0).sum()),
        discovered(first, second, num_samples),
        [int((row[unsolved] > 0).sum()) for row in after],
        [discovered(second, row, num_after) for row in after],
    )


def newly_solved(measured: Measured, model: ModelPlan, *, arm: str) -> tuple[Contrast | None, int, int]:
    """Return the gain in the share of problems solved at least once, among those that the first draw never solved.

    Args:
        measured: The records.
        model: The model.
        arm: The trained arm.

    Returns:
        The mean over these problems of the difference between the trained arm and the second draw of the base. None
        without records, or if no category has two such problems. The number of categories with records and their
        smallest number of trainings follow.
    """
    cells, num_seeds = [], []
    for category in measured.programme.categories if has_base(measured, model) else ():
        trained = trained_arm(model, category, arm)
        if measured.num_seeds(trained) < 2:
            continue
        num_seeds.append(measured.num_seeds(trained))
        (first, second, *_), _ = counts(measured, base_arm(model), category)
        # A stratum needs two problems.
        if (first == 0).sum() >= 2:
            after, _ = counts(measured, trained, category)
            cells.append((category, trained, after[:, first == 0] > 0, second[None, first == 0] > 0))
    num_problems = sum(before.shape[1] for *_, before in cells)
    blocks = []
    for category, trained, after, before in cells:
        weight = before.shape[1] / num_problems
        blocks += [
            Block(trained, category, weight, after.astype(float)),
            Block(base_arm(model), category, -weight, before.astype(float), has_seed_effect=False),
        ]
    return (crossed_contrast(blocks) if blocks else None), len(num_seeds), min(num_seeds, default=0)


def pass_at_ks(measured: Measured, model: ModelPlan, *, arm: str, ks: list[int], only_unsolved: bool) -> list[Contrast]:
    """Return pass@k of an arm, as the mean over the categories that have records.

    Args:
        measured: The records.
        model: The model.
        arm: The trained arm, or `none` for the base.
        ks: The numbers of answers.
        only_unsolved: Whether only problems count that the first draw of the base never solved. Its second draw then
            stands for the base.

    Returns:
        One estimate per k, or none without records.
    """
    found = []
    for category in measured.programme.categories if has_base(measured, model) else ():
        chosen = base_arm(model) if arm == UNTRAINED else trained_arm(model, category, arm)
        if measured.num_seeds(chosen) < 2:
            continue
        first = counts(measured, base_arm(model), category)[0][0]
        right, num_samples = counts(measured, chosen, category)
        if only_unsolved:
            right = (right[1:] if arm == UNTRAINED else right)[:, first == 0]
        if right.shape[1] >= 2:
            found.append((chosen, category, right, num_samples))
    return [
        crossed_contrast(
            [
                Block(chosen, category, 1 / len(found), _pass_at(right, num_samples, k), chosen.is_trained)
                for chosen, category, right, num_samples in found
            ]
        )
        for k in (ks if found else ())
    ]


def _pass_at(right: NDArray[float64], num_samples: int, k: int) -> NDArray[float64]:
    return numpy.array([[_pass_at_k(int(count), num_samples, k) for count in row] for row in right])


@cache
def _pass_at_k(num_right: int, num_samples: int, k: int) -> float:
    return pass_at_k(num_right, num_samples=num_samples, k=k)
