"""Tables of the arms that are trained on categories: of the parts categories, controls and greedy."""

import itertools
from statistics import fmean
from typing import NamedTuple

import numpy
from numpy import float64
from numpy.typing import NDArray

from evidence.cells import (
    ARM_NAMES,
    format_share_text,
    holm_cells,
    holm_marks,
    interval_text,
    markdown,
    mean_cell,
    missing_note,
    percent_text,
    same_answer_text,
    seeds_range,
    seeds_text,
    share_text,
)
from evidence.claims import UNSEEN, across, category_arm, within
from evidence.measured import Arm, Comparison, Measured
from evidence.right_answers import FIXED_RULES, most_frequent_share, rule_solved
from evidence.training_plan import BASE, GREEDY, GREEDY_ARMS, TRAINED, UNTRAINED, ModelPlan
from rgtrain.stats import Block, Contrast, crossed_contrast

# Greedy answers without training are a control of all of them, and stand beside the first.
WITH_GREEDY = {"accuracy": "accuracy", GREEDY: "no training, greedy", **ARM_NAMES}
# The datasets of tables of mean gains.
GAINED_ON = ("trained datasets", "unseen datasets", "other categories")
# The metrics of steps that show a collapse, with the digits that are shown.
HEALTH = {"reward": 2, "solved": 2, "answered": 2, "entropy": 2, "response_length": 0}
# The base solves a problem if at least this share of its answers is right.
RETAINED_SHARE = 0.5


def intra(measured: Measured) -> str:
    """Return the gain of the arm `accuracy` over no training and format only, by category and group of datasets."""
    rows = []
    for model in measured.models:
        for group in (TRAINED, UNSEEN):
            to_none = within(measured, model, arm="accuracy", before=UNTRAINED, group=group)
            to_format = within(measured, model, arm="accuracy", before="format_only", group=group)
            none_cells, format_cells = holm_cells(measured, to_none), holm_cells(measured, to_format)
            for comparison, none_cell, format_cell in zip(to_none, none_cells, format_cells, strict=True):
                shares = [
                    share_text(measured, arm, comparison.datasets) for arm in (comparison.before, comparison.after)
                ]
                seeds = seeds_text(measured, comparison.after)
                category = comparison.after.task.replace("_", " ")
                rows.append([model.name, group, category, seeds, *shares, none_cell, format_cell])
    header = ["model", "datasets", "category", "seeds", "before", "after", "gain over none", "gain over format only"]
    return markdown(header, rows) + missing_note(measured, "categories")


def controls(measured: Measured) -> str:
    """Return the gain of every arm over no training, and of the arm `accuracy` over it, by category and group."""
    rows = []
    for model, group in itertools.product(measured.models, (TRAINED, UNSEEN)):
        for arm, name in ARM_NAMES.items():
            to_none = within(measured, model, arm=arm, before=UNTRAINED, group=group)
            gains = holm_cells(measured, to_none)
            if arm == "accuracy":
                leads = ["-"] * len(to_none)
            else:
                leads = holm_cells(measured, within(measured, model, arm="accuracy", before=arm, group=group))
            for comparison, gain, lead in zip(to_none, gains, leads, strict=True):
                category = comparison.after.task.replace("_", " ")
                after = share_text(measured, comparison.after, comparison.datasets)
                seeds = seeds_text(measured, comparison.after)
                rows.append([model.name, group, name, category, seeds, after, gain, lead])
    header = ["model", "datasets", "arm", "category", "seeds", "after", "gain over none", "lead of accuracy"]
    return markdown(header, rows) + missing_note(measured, "controls")


def control_means(measured: Measured) -> str:
    """Return the mean gain over categories of every arm over no training, on trained, unseen and other datasets."""
    rows = []
    for model in measured.models:
        for arm, name in WITH_GREEDY.items():
            arms = [Arm(model.name, task, arm) for task in measured.programme.categories]
            seeds = "-" if arm == GREEDY else seeds_range(measured, arms)
            rows.append([model.name, name, seeds, *mean_gains(measured, model, arm=arm, before=UNTRAINED)])
    return markdown(["model", "arm", "seeds", *GAINED_ON], rows)


def greedy_means(measured: Measured) -> str:
    """Return the mean gain over categories of the arms whose answers are greedy, over greedy answers of the model."""
    rows = []
    for model in measured.models:
        for arm in GREEDY_ARMS:
            arms = [Arm(model.name, task, arm) for task in measured.programme.categories]
            name = ARM_NAMES[arm.removesuffix("_greedy")]
            gains = mean_gains(measured, model, arm=arm, before=GREEDY)
            rows.append([model.name, name, seeds_range(measured, arms), *gains])
    return markdown(["model", "arm", "seeds", *GAINED_ON], rows) + missing_note(measured, "greedy")


def mean_gains(measured: Measured, model: ModelPlan, *, arm: str, before: str) -> list[str]:
    """Return the mean difference over categories of two arms, on trained, unseen and other datasets."""
    cells = []
    for group in (TRAINED, UNSEEN, None):
        if group is None:
            comparisons = across(measured, model, arm=arm, before=before)
        else:
            comparisons = within(measured, model, arm=arm, before=before, group=group)
        cells.append(mean_cell(measured, comparisons))
    return cells


def cross(measured: Measured, before: str) -> str:
    """Return the matrix of trained and evaluated categories, with intervals."""
    categories = measured.programme.categories
    rows = []
    for model in measured.models:
        cells = cross_cells(measured, model, before)
        marks = cross_marks(cells)
        texts = {
            pair: "not run" if contrast is None else interval_text(contrast) + marks[pair]
            for pair, contrast in cells.items()
        }
        for trained in categories:
            seeds = seeds_text(measured, Arm(model.name, trained, "accuracy"))
            name = trained.replace("_", " ")
            rows.append([model.name, name, seeds, *(texts[trained, evaluated] for evaluated in categories)])
    header = ["model", "trained on", "seeds", *(name.replace("_", " ") for name in categories)]
    return markdown(header, rows)


def cross_cells(measured: Measured, model: ModelPlan, before: str) -> dict[tuple[str, str], Contrast | None]:
    """Return the gain of the arm `accuracy` for each pair of a trained and an evaluated category.

    Args:
        measured: The records.
        model: The model.
        before: The arm that it is compared with.

    Returns:
        The difference for each pair. Within a category, only its unseen datasets count.
    """
    categories = measured.programme.categories
    own = dict(zip(categories, within(measured, model, arm="accuracy", before=before, group=UNSEEN), strict=True))
    others = iter(across(measured, model, arm="accuracy", before=before))
    return {
        (trained, evaluated): measured.difference([own[trained] if trained == evaluated else next(others)])
        for trained in categories
        for evaluated in categories
    }


def cross_marks(cells: dict[tuple[str, str], Contrast | None]) -> dict[tuple[str, str], str]:
    """Return a star for each significant cell. Holm's correction is within categories, and between them."""
    marks = {}
    for is_own in (True, False):
        pairs = [pair for pair in cells if (pair[0] == pair[1]) == is_own]
        marks |= dict(zip(pairs, holm_marks([cells[pair] for pair in pairs]), strict=True))
    return marks


def retention(measured: Measured) -> str:
    """Return how much of the problems that the base solved is still solved after training."""
    rows = []
    for model in measured.models:
        by_category = {trained: retained(measured, model, trained) for trained in measured.programme.categories}
        marks = holm_marks([found.contrast if found else None for found in by_category.values()])
        for (trained, found), mark in zip(by_category.items(), marks, strict=True):
            seeds = seeds_text(measured, Arm(model.name, trained, "accuracy"))
            row = [model.name, trained.replace("_", " "), seeds]
            if found is None:
                rows.append([*row, *["not run"] * 5])
                continue
            shares = [percent_text(share) for share in (found.again, found.greedy, found.after)]
            rows.append([*row, str(found.contrast.num_problems), *shares, interval_text(found.contrast) + mark])
    header = ["model", "trained on", "seeds", "problems", "base again", "base, greedy", "after", "change"]
    return markdown(header, rows)


class Retained(NamedTuple):
    """Shares of right answers to the problems that the base solves.

    Attributes:
        again: The share of the base in its second half of draws.
        greedy: The share of the base's greedy answers.
        after: The share of the trained arm.
        contrast: The difference of `after` and `again`.
    """

    again: float
    greedy: float
    after: float
    contrast: Contrast


def retained(measured: Measured, model: ModelPlan, trained: str) -> Retained | None:
    """Compare a trained arm with the base on the problems that the base solves.

    The first half of the base's draws chooses the problems, and the second half is compared. Otherwise the problems
    would seem harder after training only because their luck ends.

    Args:
        measured: The records.
        model: The model.
        trained: The trained category.

    Returns:
        The shares of right answers; None without records.
    """
    base, greedy = Arm(model.name, BASE, UNTRAINED), Arm(model.name, BASE, GREEDY)
    after = Arm(model.name, trained, "accuracy")
    if measured.num_seeds(base) < 2 or measured.num_seeds(after) < 2 or not measured.num_seeds(greedy):
        return None
    seeds = list(measured.records[base])
    choosing, compared = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    columns: dict[str, list[NDArray[float64]]] = {"again": [], "greedy": [], "after": []}
    for category in measured.programme.categories:
        for dataset in measured.programme.datasets(category):
            chosen = measured.shares(base, dataset, seeds=choosing).mean(axis=0) >= RETAINED_SHARE
            columns["again"].append(measured.shares(base, dataset, seeds=compared)[:, chosen])
            columns["greedy"].append(measured.shares(greedy, dataset)[:, chosen])
            columns["after"].append(measured.shares(after, dataset)[:, chosen])
    again, greedily, afterwards = (numpy.concatenate(each, axis=1) for each in columns.values())
    if again.shape[1] < 2:
        return None
    contrast = crossed_contrast(
        [Block("after", "solved", 1, afterwards), Block("before", "solved", -1, again, has_seed_effect=False)]
    )
    return Retained(float(again.mean()), float(greedily.mean()), float(afterwards.mean()), contrast)


def own_category(measured: Measured) -> str:
    """Return how much more training on a category helps its unseen datasets than training on other categories does."""
    rows = []
    for model in measured.models:
        for name, text in ARM_NAMES.items():
            comparisons = [
                Comparison(own.after, category_arm(model, other, name), own.datasets)
                for own in within(measured, model, arm=name, before=UNTRAINED, group=UNSEEN)
                for other in measured.programme.categories
                if own.after != category_arm(model, other, name)
            ]
            contrast = measured.difference(comparisons)
            rows.append([model.name, text, "not run" if contrast is None else interval_text(contrast)])
    return markdown(["model", "arm", "own category - other categories"], rows)


def answers_in_format(measured: Measured) -> str:
    """Return the share of answers in the format before and after, on trained and unseen datasets."""
    rows = []
    for model in measured.models:
        for arm, name in {UNTRAINED: "none", **WITH_GREEDY}.items():
            cells = []
            for group in (TRAINED, UNSEEN):
                comparisons = within(measured, model, arm=arm, before=UNTRAINED, group=group)
                cells.append(format_share_text(measured, [(each.after, each.datasets) for each in comparisons]))
            rows.append([model.name, name, *cells])
    return markdown(["model", "arm", "trained datasets", "unseen datasets"], rows)


def training_health(measured: Measured) -> str:
    """Return the trained tokens of every arm, and metrics of its first and last steps, which show collapses."""
    rows = []
    for model in measured.models:
        for arm, name in ARM_NAMES.items():
            by_category = [
                list(measured.records.get(Arm(model.name, category, arm), {}).values())
                for category in measured.programme.categories
            ]
            steps = [record["steps"] for records in by_category for record in records]
            # Categories differ in the length of their prompts.
            tokens = [fmean(record["tokens"]["trained"] for record in records) for records in by_category if records]
            cells = [f"{fmean(tokens) / 1e6:.2f}" if len(tokens) == len(by_category) else "-"]
            for metric, digits in HEALTH.items():
                curves = [[value for value in each.get(metric, ()) if value is not None] for each in steps]
                curves = [curve for curve in curves if curve]
                if not curves:
                    cells.append("-")
                    continue
                ends = [fmean(fmean(curve[part]) for curve in curves) for part in (slice(5), slice(-5, None))]
                cells.append(" to ".join(f"{end:.{digits}f}" for end in ends))
            rows.append([model.name, name, str(len(steps)), *cells])
    return markdown(["model", "arm", "trainings", "million tokens", *(name.replace("_", " ") for name in HEALTH)], rows)


def datasets(measured: Measured) -> str:
    """Return the share solved of each dataset by the arms of its category, and how far one constant answer gets."""
    rows = []
    for model in measured.models:
        for category in measured.programme.categories:
            for group in (TRAINED, UNSEEN):
                for dataset in measured.programme.datasets(category, group=group):
                    base = share_text(measured, Arm(model.name, BASE, UNTRAINED), [dataset])
                    cells = [share_text(measured, Arm(model.name, category, arm), [dataset]) for arm in ARM_NAMES]
                    constant = percent_text(most_frequent_share(dataset))
                    same = same_answer_text(measured, Arm(model.name, category, "accuracy"), dataset)
                    name = category.replace("_", " ")
                    rows.append([model.name, name, group, dataset, constant, base, *cells, same])
    header = ["model", "category", "group", "dataset", "constant", "none", *ARM_NAMES.values()]
    return markdown([*header, "same answer, accuracy"], rows)


def fixed_rules(measured: Measured) -> str:
    """Return how often trained models solve the problems that a fixed rule solves, and all others."""
    rows = []
    for model in measured.models:
        for category in measured.programme.categories:
            for dataset in measured.programme.datasets(category):
                if dataset not in FIXED_RULES:
                    continue
                for arm in (Arm(model.name, category, "accuracy"), Arm(model.name, category, "sft")):
                    row = [model.name, dataset, FIXED_RULES[dataset].text, ARM_NAMES[arm.name]]
                    rows.append([*row, *rule_cells(measured, arm, dataset)])
    header = ["model", "dataset", "rule", "arm", "problems solved by it", "of these, solved", "of the others, solved"]
    return markdown(header, rows)


def rule_cells(measured: Measured, arm: Arm, dataset: str) -> list[str]:
    """Return how many problems of a dataset a fixed rule solves, and how often an arm solves these and the others."""
    if arm not in measured.records:
        return ["-"] * 3
    shares = measured.shares(arm, dataset).mean(axis=0)
    by_rule = numpy.array([rule_solved()[dataset][digest] for digest in dict.fromkeys(measured.digests(arm, dataset))])
    numbers = f"{by_rule.sum()} of {len(by_rule)}"
    return [numbers, percent_text(shares[by_rule].mean()), percent_text(shares[~by_rule].mean())]
