"""The claims of the paper, the difference that tests each, and the verdict by a fixed rule."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from evidence.boundary_measures import newly_solved, trained_arm
from evidence.measured import Arm, Comparison, Measured
from evidence.right_answers import answerable
from evidence.training_plan import BASE, GREEDY, OUTSIDE, TRAINED, UNTRAINED, ModelPlan, outside_task
from rgtrain.stats import Contrast, adjusted_p_values

UNSEEN = "unseen"
LEVEL = 0.05
# Smaller gains don't matter. A claim does not hold if its interval ends below.
SMALLEST_GAIN = 0.02
# With two seeds, the test rejects 8 % of equal arms, so there is no verdict.
FEWEST_SEEDS = 3
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
# The arm of curricula that draws all levels evenly.
UNIFORM = "uniform"


class Tested(NamedTuple):
    """The difference that tests a claim for one model.

    Attributes:
        contrast: The difference, or None if no comparison has its records.
        num_compared: The number of comparisons in the mean.
        num_planned: The number of comparisons of the whole programme.
        num_seeds: The smallest number of trainings of a trained arm.
        num_planned_seeds: The smallest number of trainings that the programme has for such an arm.
        can_differ: Whether some answers are right and some are wrong.
    """

    contrast: Contrast | None
    num_compared: int
    num_planned: int
    num_seeds: int
    num_planned_seeds: int
    can_differ: bool = True

    @property
    def has_verdict(self) -> bool:
        """Whether there is a difference with enough seeds for a verdict."""
        return self.contrast is not None and self.num_seeds >= FEWEST_SEEDS


class Judged(NamedTuple):
    """A verdict, and the p-value behind it, adjusted for the number of claims."""

    verdict: str
    adjusted_p: float


class Claim(NamedTuple):
    """A claim.

    Attributes:
        text: The claim.
        measure: The difference that tests it.
        section: The anchor of the section of docs/evidence.md with its figure or table.
        test: The function that returns the difference for a model.
    """

    text: str
    measure: str
    section: str
    test: Callable[[Measured, ModelPlan], Tested]


def within(measured: Measured, model: ModelPlan, *, arm: str, before: str, group: str | None) -> list[Comparison]:
    """Return one comparison per category, of arms that were trained on the category.

    Args:
        measured: The records.
        model: The model.
        arm: The name of the arm.
        before: The name of the arm that it is compared with.
        group: `trained`, `unseen`, or None for all datasets of the category.

    Returns:
        The comparisons.
    """
    return [
        Comparison(
            category_arm(model, category, arm),
            category_arm(model, category, before),
            answerable(model, measured.programme.datasets(category, group=group)),
        )
        for category in measured.programme.categories
    ]


def across(measured: Measured, model: ModelPlan, *, arm: str, before: str) -> list[Comparison]:
    """Return one comparison for each trained category and each other category, on all datasets of the other one."""
    categories = measured.programme.categories
    return [
        Comparison(
            category_arm(model, trained, arm),
            category_arm(model, trained, before),
            answerable(model, measured.programme.datasets(evaluated)),
        )
        for trained in categories
        for evaluated in categories
        if trained != evaluated
    ]


def outside(measured: Measured, model: ModelPlan, *, arm: str, before: str) -> list[Comparison]:
    """Return one comparison per trained category, on the outside benchmarks."""
    benchmarks = list(measured.programme.datasets(OUTSIDE))
    return [
        Comparison(outside_arm(model, category, arm), outside_arm(model, category, before), benchmarks)
        for category in measured.programme.categories
    ]


def category_arm(model: ModelPlan, category: str, arm: str) -> Arm:
    """Return an arm of a category. The model without training is the same for all categories."""
    return Arm(model.name, BASE if arm in (UNTRAINED, GREEDY) else category, arm)


def outside_arm(model: ModelPlan, category: str, arm: str) -> Arm:
    """Return an arm that answers outside benchmarks. The model without training is the same for all categories."""
    return Arm(model.name, OUTSIDE if arm == UNTRAINED else outside_task(category), arm)


def of_task(measured: Measured, model: ModelPlan, part: str, *, arm: str, before: str) -> list[Comparison]:
    """Return one comparison for each task of a part that trains the arm, on all datasets that the task evaluates."""
    tasks = {training.task: training for training in measured.planned(part, model) if training.arm == arm}
    return [
        Comparison(Arm(model.name, task, arm), Arm(model.name, task, before), measured.evaluated(training))
        for task, training in tasks.items()
    ]


def tested(measured: Measured, comparisons: Sequence[Comparison]) -> Tested:
    """Return the mean difference over the comparisons that have their records.

    Comparisons whose arms both solve everything or nothing are left out, unless all are such: they would narrow the
    interval, and say nothing on the claim.
    """
    complete = [comparison for comparison in comparisons if measured.is_complete(comparison)]
    telling = [comparison for comparison in complete if measured.can_differ(comparison)]
    if telling:
        comparisons = [each for each in comparisons if each in telling or each not in complete]
        complete = telling
    trained = [arm for comparison in complete for arm in comparison[:2] if arm.is_trained]
    planned = [arm for comparison in comparisons for arm in comparison[:2] if arm.is_trained]
    return Tested(
        measured.difference(complete),
        len(complete),
        len(comparisons),
        min(map(measured.num_seeds, trained), default=0),
        min(map(measured.num_planned, planned), default=0),
        bool(telling),
    )


def verdict(contrast: Contrast, *, adjusted_p: float, can_differ: bool = True) -> str:
    """Return the verdict on a claim that a difference is positive.

    Args:
        contrast: The difference.
        adjusted_p: Its p-value, adjusted for the number of claims.
        can_differ: Whether some answers are right and some are wrong.

    Returns:
        `HOLDS` if the difference is positive and significant, `FAILS` if it is negative and significant or its interval
        ends below `SMALLEST_GAIN`, and `OPEN` otherwise or if the answers cannot differ.
    """
    if not can_differ:
        return OPEN
    if adjusted_p < LEVEL and contrast.estimate > 0:
        return HOLDS
    if adjusted_p < LEVEL or contrast.interval[1] < SMALLEST_GAIN:
        return FAILS
    return OPEN


def verdicts(measured: Measured, model: ModelPlan) -> list[tuple[Claim, Tested, Judged | None]]:
    """Return each claim with its difference, and its verdict and p-value by Holm's method over claims.

    Args:
        measured: The records.
        model: The model.

    Returns:
        The verdict and the p-value are None if the difference has too few seeds.
    """
    found = [claim.test(measured, model) for claim in CLAIMS]
    adjusted = iter(adjusted_p_values([each.contrast.p_value for each in found if each.has_verdict]))
    return [
        (claim, each, judged(each, adjusted_p=next(adjusted)) if each.has_verdict else None)
        for claim, each in zip(CLAIMS, found, strict=True)
    ]


def judged(found: Tested, *, adjusted_p: float) -> Judged:
    """Return the verdict on a claim by its difference and its adjusted p-value."""
    return Judged(verdict(found.contrast, adjusted_p=adjusted_p, can_differ=found.can_differ), adjusted_p)


def _within(arm: str, before: str, group: str) -> Callable[[Measured, ModelPlan], Tested]:
    return lambda measured, model: tested(measured, within(measured, model, arm=arm, before=before, group=group))


def _across(before: str) -> Callable[[Measured, ModelPlan], Tested]:
    return lambda measured, model: tested(measured, across(measured, model, arm="accuracy", before=before))


def _outside(before: str) -> Callable[[Measured, ModelPlan], Tested]:
    return lambda measured, model: tested(measured, outside(measured, model, arm="accuracy", before=before))


def _of_task(part: str, arm: str, before: str) -> Callable[[Measured, ModelPlan], Tested]:
    return lambda measured, model: tested(measured, of_task(measured, model, part, arm=arm, before=before))


def _boundary(measured: Measured, model: ModelPlan) -> Tested:
    contrast, num_categories, num_seeds = newly_solved(measured, model, arm="accuracy")
    categories = measured.programme.categories
    planned = [measured.num_planned(trained_arm(model, category, "accuracy")) for category in categories]
    return Tested(contrast, num_categories, len(categories), num_seeds, min(planned))


CLAIMS = (
    Claim(
        "Training carries over to unseen datasets of the category",
        "accuracy - none",
        "within-a-category",
        _within("accuracy", UNTRAINED, UNSEEN),
    ),
    Claim(
        "Within a category, it carries over more than the answer format",
        "accuracy - format only",
        "within-a-category",
        _within("accuracy", "format_only", UNSEEN),
    ),
    Claim(
        "Within a category, it carries over more than greedy answers without training",
        "accuracy - no training, greedy",
        "within-a-category",
        _within("accuracy", GREEDY, UNSEEN),
    ),
    Claim("Training carries over to other categories", "accuracy - none", "across-categories", _across(UNTRAINED)),
    Claim(
        "Across categories, it carries over more than the answer format",
        "accuracy - format only",
        "across-categories",
        _across("format_only"),
    ),
    Claim(
        "Across categories, it carries over more than greedy answers without training",
        "accuracy - no training, greedy",
        "across-categories",
        _across(GREEDY),
    ),
    Claim(
        "RL teaches more than the format, on trained datasets",
        "accuracy - format only",
        "within-a-category",
        _within("accuracy", "format_only", TRAINED),
    ),
    Claim(
        "Right rewards are needed, on trained datasets",
        "accuracy - random reward",
        "within-a-category",
        _within("accuracy", "random_reward", TRAINED),
    ),
    Claim(
        "RL carries over better than SFT, to unseen datasets",
        "accuracy - SFT",
        "within-a-category",
        _within("accuracy", "sft", UNSEEN),
    ),
    Claim(
        "The paper's curriculum helps",
        "threshold - uniform",
        "curricula",
        _of_task("curriculum", "threshold", UNIFORM),
    ),
    Claim(
        "A frontier curriculum helps", "frontier - uniform", "curricula", _of_task("curriculum", "frontier", UNIFORM)
    ),
    Claim(
        "An adaptive mixture of levels helps",
        "adaptive - uniform",
        "curricula",
        _of_task("curriculum", "adaptive", UNIFORM),
    ),
    Claim("A bandit over levels helps", "bandit - uniform", "curricula", _of_task("curriculum", "bandit", UNIFORM)),
    Claim(
        "Training solves problems that the base never solves",
        "solved by 1 of 256, accuracy - base again",
        "boundary",
        _boundary,
    ),
    Claim(
        "SFT first opens datasets without reward",
        "SFT, then RL - RL only",
        "warm-start",
        _of_task("warm_start", "sft_then_rl", "rl_only"),
    ),
    Claim(
        "Dropped examples open datasets without reward",
        "examples dropped - RL only",
        "warm-start",
        _of_task("warm_start", "examples_dropped", "rl_only"),
    ),
    Claim(
        "Training carries over to outside benchmarks",
        "accuracy - none, on GSM8K, MATH, Big-Bench Hard",
        "outside-benchmarks",
        _outside(UNTRAINED),
    ),
    Claim(
        "Outside, it carries over more than the answer format",
        "accuracy - format only",
        "outside-benchmarks",
        _outside("format_only"),
    ),
)
