"""The figures of the evidence, from its records."""

import itertools
from collections.abc import Callable, Sequence

import numpy

from evidence.boundary_measures import has_base, pass_at_ks
from evidence.category_tables import WITH_GREEDY, cross_cells, cross_marks
from evidence.cells import ARM_NAMES
from evidence.claims import FEWEST_SEEDS, UNIFORM, UNSEEN, within
from evidence.measured import Arm, Comparison, Measured
from evidence.part_tables import BOUNDARY_ARMS, POLICIES, curriculum_tasks
from evidence.svg_charts import Curves, Estimate, Forest, HeatMap, curves_figure, forest_figure, heat_map_figure
from evidence.training_plan import TRAINED, UNTRAINED
from rgtrain.stats import Contrast

POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def intra_figure(measured: Measured) -> str | None:
    """Draw the gain of every arm over no training, by category, on trained and unseen datasets."""
    panels = []
    for model, group in itertools.product(measured.models, (TRAINED, UNSEEN)):
        rows: list[tuple[str, dict[int, Estimate]]] = [
            (category.replace("_", " "), {}) for category in measured.programme.categories
        ]
        for index, arm in enumerate(WITH_GREEDY):
            for row, comparison in zip(
                rows, within(measured, model, arm=arm, before=UNTRAINED, group=group), strict=True
            ):
                # Intervals of fewer seeds are too wide to show beside others.
                if comparison.after.is_trained and measured.num_seeds(comparison.after) < FEWEST_SEEDS:
                    continue
                if (contrast := measured.difference([comparison])) is not None:
                    row[1][index] = estimate_of(contrast)
        if any(row for _, row in rows):
            panels.append(Forest(f"{model.name}: {group}", rows))
    if not panels:
        return None
    return forest_figure(
        panels,
        series=list(WITH_GREEDY.values()),
        axis="gain over no training, in percentage points, with 95 % intervals",
        description=FIGURES["intra_figure"][1],
    )


def cross_figure(measured: Measured) -> str | None:
    """Draw the matrices of trained and evaluated categories, against no training and against format only."""
    names = [category.replace("_", " ") for category in measured.programme.categories]
    panels = []
    for model, (before, title) in itertools.product(
        measured.models, ((UNTRAINED, "gain over no training"), ("format_only", "gain over format only"))
    ):
        cells = cross_cells(measured, model, before)
        if not any(cells.values()):
            continue
        marks = cross_marks(cells)
        categories = measured.programme.categories
        values = [[cell.estimate if (cell := cells[a, b]) else None for b in categories] for a in categories]
        is_marked = [[bool(marks[a, b]) for b in categories] for a in categories]
        panels.append(HeatMap(f"{model.name}: {title}", names, names, values, is_marked))
    if not panels:
        return None
    return heat_map_figure(panels, axis=("trained on", "evaluated on"), description=FIGURES["cross_figure"][1])


def curriculum_figure(measured: Measured) -> str | None:
    """Draw the gain of each curriculum over drawing all levels evenly, by level, over all levels and by training.

    A level is left out if a curriculum and uniform levels both solve none or all of its problems.

    Args:
        measured: The programme with its records.

    Returns:
        The SVG; None without records, or if no level is left.
    """
    panels = []
    curricula = [policy for policy in POLICIES if policy != UNIFORM]
    for model in measured.models:
        for task, datasets in curriculum_tasks(measured, model).items():
            arms = {
                index: (Arm(model.name, task, policy), Arm(model.name, task, UNIFORM))
                for index, policy in enumerate(curricula)
            }
            groups = {**{str(level): [dataset] for level, dataset in enumerate(datasets)}, "all": datasets}
            compared = {
                index: {place: Comparison(*pair, group) for place, group in groups.items()}
                for index, pair in arms.items()
                if measured.is_complete(Comparison(*pair, datasets))
            }
            places = [
                place for place in groups if all(measured.can_differ(by_place[place]) for by_place in compared.values())
            ]
            if compared and len(places) > 1:
                curves = {
                    index: estimates(measured, [by_place[place] for place in places])
                    for index, by_place in compared.items()
                }
                title = f"{model.name}: {task.removeprefix('curriculum_')}"
                trainings = {index: gains_of_trainings(measured, compared[index]["all"]) for index in compared}
                panels.append(Curves(title, places, curves, ends_with_total=True, trainings=trainings))
    if not panels:
        return None
    return curves_figure(
        panels,
        series=curricula,
        axis="level; gain over uniform levels, in points",
        description=FIGURES["curriculum_figure"][1],
    )


def gains_of_trainings(measured: Measured, comparison: Comparison) -> list[float]:
    """Return the gain of each training of an arm over the mean of the arm that it is compared with."""
    before = measured.mean_share(comparison.before, comparison.datasets)
    by_dataset = [measured.shares(comparison.after, dataset).mean(axis=1) for dataset in comparison.datasets]
    return (numpy.mean(by_dataset, axis=0) - before).tolist()


def boundary_figure(measured: Measured) -> str | None:
    """Draw pass@k before and after training, on all problems and on those that the base never solved."""
    panels = []
    for model in measured.models if any(has_base(measured, model) for model in measured.models) else ():
        for only_unsolved, title in ((False, "all problems"), (True, "never solved by base")):
            curves: dict[int, list[Estimate]] = {}
            for index, arm in enumerate((UNTRAINED, *BOUNDARY_ARMS)):
                found = pass_at_ks(measured, model, arm=arm, ks=POWERS, only_unsolved=only_unsolved)
                if found:
                    curves[index] = [estimate_of(each) for each in found]
            if len(curves) > 1:
                panels.append(Curves(f"{model.name}: {title}", list(map(str, POWERS)), curves))
    if not panels:
        return None
    series = ("base", *(ARM_NAMES[arm] for arm in BOUNDARY_ARMS))
    return curves_figure(panels, series=series, axis="k; pass@k in percent", description=FIGURES["boundary_figure"][1])


def estimates(measured: Measured, comparisons: Sequence[Comparison]) -> list[Estimate]:
    """Return the difference of each comparison that has its records, as a figure draws it."""
    contrasts = [measured.difference([comparison]) for comparison in comparisons]
    return [estimate_of(contrast) for contrast in contrasts if contrast]


def estimate_of(contrast: Contrast) -> Estimate:
    """Return a contrast as a figure draws it."""
    return Estimate(contrast.estimate, *contrast.interval)


# The figures with their descriptions.
FIGURES: dict[str, tuple[Callable[[Measured], str | None], str]] = {
    "intra_figure": (intra_figure, "Gain of each arm over no training on trained and unseen datasets, by category"),
    "cross_figure": (cross_figure, "Gain on each evaluated category by trained category"),
    "curriculum_figure": (
        curriculum_figure,
        "Gain of each curriculum over uniform levels, at each level and over all of them",
    ),
    "boundary_figure": (boundary_figure, "pass@k before and after training"),
}
