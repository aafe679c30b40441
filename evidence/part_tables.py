"""Tables of the parts on curricula, the boundary, outside benchmarks, learning rates and others."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from evidence.boundary_measures import discoveries, trained_arm
from evidence.cells import (
    ARM_NAMES,
    format_share_text,
    holm_cells,
    markdown,
    mean_cell,
    missing_note,
    percent_text,
    same_answer_text,
    seeds_range,
    seeds_text,
    share_text,
)
from evidence.claims import UNIFORM, outside, outside_arm
from evidence.measured import Arm, Comparison, Measured
from evidence.records import solved_share
from evidence.right_answers import all_subtasks, most_frequent_share
from evidence.training_plan import BASE, LEARNING_RATE, OUTSIDE, OUTSIDE_ARMS, UNTRAINED, ModelPlan

# The arms of the part curriculum, with the adaptive mixture beside the other curricula.
POLICIES = (UNIFORM, "threshold", "frontier", "adaptive", "bandit")
# The benchmark whose right answers are few different ones.
WITH_FEW_ANSWERS = "bbh"
BOUNDARY_ARMS = ("accuracy", "random_reward")
# The arm that the other arms of a part are compared with.
REFERENCES = {"curriculum": UNIFORM, "warm_start": "rl_only", "algorithms": "accuracy", "breadth": "datasets_1"}


def arms_of_part(measured: Measured, part: str, *, groups: Sequence[str] = ()) -> str:
    """Return the accuracy of every arm of a part by task, and the difference to the part's reference arm.

    Args:
        measured: The records.
        part: The name of the part.
        groups: Groups of datasets in the evaluation file of the task, which are shown separately. Without any, the
            table has the mean over all datasets that the task evaluates.

    Returns:
        The table.
    """
    reference_name = REFERENCES.get(part, UNTRAINED)
    rows = []
    for model in measured.models:
        by_task: dict[str, dict[str, list[str]]] = defaultdict(dict)
        for training in measured.planned(part, model):
            by_task[training.task].setdefault(training.arm, measured.evaluated(training))
        for task, arms in by_task.items():
            # The model without training is the same for all categories.
            reference = Arm(model.name, task if reference_name in arms else BASE, reference_name)
            found = {name: Arm(model.name, task, name) for name in arms}
            compared = [arm for name, arm in found.items() if name not in (reference_name, UNTRAINED)]
            columns: list[dict[str, str]] = []
            for group in groups or (None,):
                datasets = {
                    name: evaluated if group is None else list(measured.programme.datasets(task, group=group))
                    for name, evaluated in arms.items()
                }
                comparisons = [Comparison(arm, reference, datasets[arm.name]) for arm in compared]
                columns.append({name: share_text(measured, arm, datasets[name]) for name, arm in found.items()})
                differences = zip(compared, holm_cells(measured, comparisons), strict=True)
                columns.append({arm.name: text for arm, text in differences})
            for name, arm in found.items():
                cells = [column.get(name, "-") for column in columns]
                rows.append([model.name, task, name.replace("_", " "), seeds_text(measured, arm), *cells])
    if not rows:
        return "This part has no trainings."
    difference = f"difference to {reference_name.replace('_', ' ')}"
    header = ["model", "task", "arm", "seeds"]
    for group in groups or ("",):
        header += [f"solved, {group}" if group else "solved", difference]
    return markdown(header, rows) + missing_note(measured, part)


def curricula(measured: Measured) -> str:
    """Return one row per model and dataset, with the gain of each curriculum over uniform levels."""
    policies = [policy for policy in POLICIES if policy != UNIFORM]
    rows = []
    for model in measured.models:
        for task, evaluated in curriculum_tasks(measured, model).items():
            uniform = Arm(model.name, task, UNIFORM)
            arms = [Arm(model.name, task, policy) for policy in policies]
            gains = holm_cells(measured, [Comparison(arm, uniform, evaluated) for arm in arms])
            shares = [share_text(measured, Arm(model.name, task, name), evaluated) for name in (UNTRAINED, UNIFORM)]
            dataset = task.removeprefix("curriculum_")
            seeds = seeds_range(measured, [uniform, *arms])
            rows.append([model.name, dataset, seeds, *shares, *gains])
    header = ["model", "dataset", "seeds", "before", UNIFORM, *policies]
    return markdown(header, rows) + missing_note(measured, "curriculum")


def levels_and_seeds(measured: Measured) -> str:
    """Return the accuracy of each curriculum by level and by seed, and the length of the last answers by seed."""
    rows = []
    for model in measured.models:
        for task, datasets in curriculum_tasks(measured, model).items():
            for policy in (UNTRAINED, *POLICIES):
                arm = Arm(model.name, task, policy)
                by_level = [share_text(measured, arm, [dataset]) for dataset in datasets]
                records = measured.records.get(arm, {}).values()
                by_seed = [percent_text(fmean(map(solved_share, each["evaluation"].values()))) for each in records]
                lengths = [f"{fmean(each['steps']['response_length'][-5:]):.0f}" for each in records if arm.is_trained]
                cells = [" / ".join(values) or "-" for values in (by_level, by_seed, lengths)]
                rows.append([model.name, task, policy, *cells])
    return markdown(["model", "task", "arm", "solved at each level", "solved by each seed", "tokens at the end"], rows)


def curriculum_tasks(measured: Measured, model: ModelPlan) -> dict[str, list[str]]:
    """Return the datasets of each task of the part on curricula, one per level."""
    return {training.task: measured.evaluated(training) for training in measured.planned("curriculum", model)}


def boundary(measured: Measured) -> str:
    """Return the number of problems that the base never solves and trainings solve, by category."""
    rows = []
    for model in measured.models:
        for arm, category in itertools.product(BOUNDARY_ARMS, measured.programme.categories):
            found = discoveries(measured, model, category=category, arm=arm)
            name = category.replace("_", " ")
            if found is None:
                rows.append([model.name, ARM_NAMES[arm], name, "0", *["not run"] * 6])
                continue
            rows.append(
                [
                    model.name,
                    ARM_NAMES[arm],
                    name,
                    str(len(found.solved)),
                    *map(str, found[:4]),
                    *(f"{fmean(each):.1f} ({min(each)} to {max(each)})" for each in (found.solved, found.discovered)),
                ]
            )
    header = ["model", "arm", "category", "seeds", "problems", "never solved", "of these, base again", "false"]
    return markdown([*header, "solved after", "discoveries"], rows) + missing_note(measured, "boundary")


def boundary_totals(measured: Measured) -> str:
    """Return the sums over categories of the problems that the base never solves and trainings solve."""
    rows = []
    for model, arm in itertools.product(measured.models, BOUNDARY_ARMS):
        categories = measured.programme.categories
        by_category = [discoveries(measured, model, category=category, arm=arm) for category in categories]
        found = [each for each in by_category if each is not None]
        if not found:
            rows.append([model.name, ARM_NAMES[arm], "0", "0", *["not run"] * 6])
            continue
        sums = [sum(numbers) for numbers in zip(*(each[:4] for each in found), strict=True)]
        means = [
            sum(map(fmean, lists)) for lists in ([each.solved for each in found], [each.discovered for each in found])
        ]
        seeds = seeds_range(measured, [trained_arm(model, category, arm) for category in categories])
        numbers = [*map(str, sums), *(f"{each:.1f}" for each in means)]
        rows.append([model.name, ARM_NAMES[arm], seeds, str(len(found)), *numbers])
    header = ["model", "arm", "seeds", "categories", "problems", "never solved", "base again", "false"]
    return markdown([*header, "solved after", "discoveries"], rows) + missing_note(measured, "boundary")


def outside_means(measured: Measured) -> str:
    """Return the share of outside benchmarks that is solved without training, and the mean gain of each arm."""
    benchmarks = list(measured.programme.datasets(OUTSIDE))
    one = [percent_text(most_frequent_share(name)) for name in benchmarks]
    one_each = [
        percent_text(most_frequent_share(name, by_subtask=True)) if name in all_subtasks() else "-"
        for name in benchmarks
    ]
    rows = [["-", "one answer to all", "-", "-", *one], ["-", "one answer per subtask", "-", "-", *one_each]]
    for model in measured.models:
        rows.append([model.name, "no training", *outside_without_training(measured, model, benchmarks)])
        for arm in OUTSIDE_ARMS:
            comparisons = outside(measured, model, arm=arm, before=UNTRAINED)
            arms = [comparison.after for comparison in comparisons]
            complete = [comparison.after for comparison in comparisons if measured.is_complete(comparison)]
            in_format = format_share_text(measured, [(each, benchmarks) for each in complete])
            gains = [
                mean_cell(measured, [each._replace(datasets=[benchmark]) for each in comparisons])
                for benchmark in benchmarks
            ]
            rows.append([model.name, ARM_NAMES[arm], seeds_range(measured, arms), in_format, *gains])
    return markdown(["model", "arm", "seeds", "in the format", *benchmarks], rows) + missing_note(measured, OUTSIDE)


def outside_without_training(measured: Measured, model: ModelPlan, benchmarks: Sequence[str]) -> list[str]:
    """Return the trainings of a model without training, its share of answers in the format, and its right ones."""
    base = outside_arm(model, measured.programme.categories[0], UNTRAINED)
    shares = [share_text(measured, base, [benchmark]) for benchmark in benchmarks]
    return [seeds_text(measured, base), format_share_text(measured, [(base, benchmarks)]), *shares]


def outside_by_category(measured: Measured) -> str:
    """Return the gain on outside benchmarks by each trained category, and how far it is one answer to all problems."""
    benchmarks = list(measured.programme.datasets(OUTSIDE))
    rows = []
    for model in measured.models:
        rows.append([model.name, "no training", "-", *outside_without_training(measured, model, benchmarks), "-"])
        for arm in OUTSIDE_ARMS:
            comparisons = outside(measured, model, arm=arm, before=UNTRAINED)
            by_benchmark = [
                holm_cells(measured, [each._replace(datasets=[benchmark]) for each in comparisons])
                for benchmark in benchmarks
            ]
            by_category = zip(measured.programme.categories, comparisons, zip(*by_benchmark, strict=True), strict=True)
            for category, comparison, gains in by_category:
                trained = comparison.after
                in_format = format_share_text(measured, [(trained, benchmarks)])
                same = same_answer_text(measured, trained, WITH_FEW_ANSWERS)
                seeds = seeds_text(measured, trained)
                rows.append([model.name, ARM_NAMES[arm], category.replace("_", " "), seeds, in_format, *gains, same])
    header = ["model", "arm", "trained on", "seeds", "in the format", *benchmarks, f"same answer, {WITH_FEW_ANSWERS}"]
    return markdown(header, rows) + missing_note(measured, OUTSIDE)


def learning_rates(measured: Measured) -> str:
    """Return the trials of learning rates and the chosen ones."""
    rows = []
    for model in measured.models:
        for kind, grid in model.grids.items():
            arms = {rate: Arm(model.name, LEARNING_RATE, f"{kind}_{rate:g}") for rate in grid}
            datasets = list(measured.programme.datasets(LEARNING_RATE))
            means = {rate: measured.mean_share(arm, datasets) for rate, arm in arms.items() if measured.num_seeds(arm)}
            # The lower rate is chosen in a tie.
            best = max(sorted(means), key=lambda rate: means[rate]) if len(means) == len(grid) else None
            chosen = model.chosen.get(kind, best)
            for rate, arm in arms.items():
                mark = "chosen" if rate == chosen else ""
                rows.append(
                    [
                        model.name,
                        kind,
                        f"{rate:g}",
                        seeds_text(measured, arm),
                        share_text(measured, arm, datasets),
                        mark,
                    ]
                )
    return markdown(["model", "training", "learning rate", "seeds", "solved", ""], rows)
