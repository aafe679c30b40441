"""Recompute every table and figure of the evidence from evidence/results, without a GPU: python evidence/tables.py.

With `--check`, nothing is written: the command fails if a document or figure differs from the records. A Markdown file
marks the place of a table or figure by two comments, and everything between them is replaced:

    <!-- evidence:intra -->
    <!-- end -->
"""

import argparse
import importlib
import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy
from numpy import float64
from numpy.typing import NDArray

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.boundary_measures import discoveries, has_base, pass_at_ks, trained_arm
from evidence.calibration import PATH as CALIBRATION
from evidence.claims import FEWEST_SEEDS, LEVEL, UNIFORM, UNSEEN, across, category_arm, outside, verdicts, within
from evidence.figures import Curves, Estimate, Forest, HeatMap, curves_figure, forest_figure, heat_map_figure
from evidence.measured import Arm, Comparison, Measured, Part, read_records
from evidence.records import deviations, solved_share
from evidence.right_answers import FIXED_RULES, all_subtasks, most_frequent_share, rule_solved, same_answer_share
from evidence.training_plan import (
    BASE,
    EVIDENCE,
    GREEDY,
    GREEDY_ARMS,
    LEARNING_RATE,
    OUTSIDE,
    OUTSIDE_ARMS,
    PARTS,
    RESULTS,
    TRAINED,
    UNTRAINED,
    ModelPlan,
    read_programme,
)
from rgtrain.paths import PROJECT_ROOT
from rgtrain.stats import Block, Contrast, adjusted_p_values, crossed_contrast, mean, mean_interval

DOCUMENTS = (PROJECT_ROOT / "docs" / "evidence.md", EVIDENCE / "TABLES.md")
IMAGES = PROJECT_ROOT / "docs" / "images"
# The arms of the categories, in the order of tables and figures.
ARM_NAMES = {
    "accuracy": "accuracy",
    "format_only": "format only",
    "random_reward": "random reward",
    "inverted": "inverted accuracy",
    "sft": "SFT",
    "sft_then_rl": "SFT, then RL",
}
# Greedy answers without training are a control of all of them, and stand beside the first.
WITH_GREEDY = {"accuracy": "accuracy", GREEDY: "no training, greedy", **ARM_NAMES}
# The datasets of tables of mean gains.
GAINED_ON = ("trained datasets", "unseen datasets", "other categories")
POLICIES = (UNIFORM, "threshold", "frontier", "adaptive", "bandit")
BOUNDARY_ARMS = ("accuracy", "random_reward")
# The arm that the other arms of a part are compared with.
REFERENCES = {"curriculum": UNIFORM, "warm_start": "rl_only", "algorithms": "accuracy", "breadth": "datasets_1"}
# The base solves a problem if at least this share of its answers is right.
RETAINED_SHARE = 0.5
_MARKED = re.compile(r"(<!-- evidence:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Run the command."""
    description = (__doc__ or "").split(":")[0] + "."
    parser = argparse.ArgumentParser(prog="python evidence/tables.py", description=description)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a file is not up to date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the records")
    arguments = parser.parse_args()
    files = rendered_files(read_measured(arguments.results))
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    # A figure without records does not exist.
    superfluous = [path for path in IMAGES.glob("evidence_*.svg") if path not in files]
    if arguments.check:
        for path in (*stale, *superfluous):
            print(f"{path.relative_to(PROJECT_ROOT)} differs from the records; run `python evidence/tables.py`")
        sys.exit(bool(stale or superfluous))
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
    for path in superfluous:
        path.unlink()


def read_measured(results: Path = RESULTS) -> Measured:
    """Return the records below a folder with the programme that they belong to."""
    parts: dict[str, Part] = {name: importlib.import_module(f"evidence.parts.{name}").trainings for name in PARTS}
    records = read_records(results)
    programme = read_programme().with_models(record["model"] for record in records)
    return Measured(programme, records, parts)


def rendered_files(measured: Measured) -> dict[Path, str]:
    """Return the text of every document and figure by its path."""
    figures = {name: draw(measured) for name, (draw, _) in FIGURES.items()}
    documents = {
        path: filled(path.read_text(encoding="utf-8"), measured, figures=figures, folder=path.parent)
        for path in DOCUMENTS
    }
    return documents | {image_path(name): svg for name, svg in figures.items() if svg is not None}


def image_path(figure: str) -> Path:
    """Return the path of a figure."""
    return IMAGES / f"evidence_{figure}.svg"


def filled(text: str, measured: Measured, *, figures: dict[str, str | None], folder: Path) -> str:
    """Fill every marked place of a Markdown text with its table or figure.

    Args:
        text: The text.
        measured: The records.
        figures: Each figure by its name, or None if it has no records.
        folder: The folder of the Markdown file, to which links are relative.

    Returns:
        The filled text.

    Raises:
        ValueError: A mark names no table and no figure.
    """

    def fill(place: re.Match[str]) -> str:
        name = place[2]
        if name in TABLES:
            content = TABLES[name](measured)
        elif name in FIGURES:
            up = "" if folder == IMAGES.parent else "../docs/"
            image = f"![{FIGURES[name][1]}]({up}images/{image_path(name).name})"
            content = image if figures[name] is not None else "This figure has no records yet."
        else:
            raise ValueError(f"there is no table or figure {name!r}; choose from {', '.join([*TABLES, *FIGURES])}")
        return f"{place[1]}\n{content}\n\n{place[3]}"

    return _MARKED.sub(fill, text)


# ---- tables


def verdict_table(measured: Measured) -> str:
    """Return one row per claim and one column per model."""
    by_model = [verdicts(measured, model) for model in measured.models]
    rows = []
    for tests in zip(*by_model, strict=True):
        claim = tests[0][0]
        cells = []
        for _, found, judged in tests:
            if found.contrast is None:
                cells.append("too few problems" if found.num_compared else "not run")
                continue
            notes = []
            if found.num_compared < found.num_planned:
                notes.append(f"{found.num_compared} of {found.num_planned}")
            if found.num_seeds < found.num_planned_seeds:
                notes.append(f"{found.num_seeds} of {found.num_planned_seeds} seeds")
            note = ", ".join(notes)
            word = f"**{judged.verdict}**" + (" so far" if note else "") if judged else "incomplete"
            cells.append(f"{word}: {interval_text(found.contrast)}" + (f" [{note}]" if note else ""))
        anchor = ANCHORS.get(claim.figure)
        text = f"[{claim.text}](#{anchor})" if anchor else claim.text
        rows.append([text, claim.measure, *cells])
    return markdown(["claim", "measure", *(model.name for model in measured.models)], rows)


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
        complete = [each for each in comparisons if measured.is_complete(each)]
        contrast = measured.difference(complete)
        partial = f" [{len(complete)} of {len(comparisons)}]" if len(complete) < len(comparisons) else ""
        cells.append("not run" if contrast is None else interval_text(contrast) + partial)
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


def equal_arms(measured: Measured) -> str:
    """Return the share of rejections if two groups of seeds of the same arm are compared (A/A)."""
    rows = []
    for model in measured.models:
        rejected, clusters = [], []
        for arm in measured.records:
            if arm.model != model.name or arm.task not in (BASE, *measured.programme.categories):
                continue
            for category in measured.programme.categories:
                for p_value in split_p_values(measured, arm, list(measured.programme.datasets(category))):
                    rejected.append(float(p_value < LEVEL))
                    clusters.append(arm)
        if not rejected:
            rows.append([model.name, "0", "0", "fewer than 4 seeds"])
            continue
        low, high = mean_interval(rejected, clusters=clusters)
        share = f"{percent_text(mean(rejected))} ({percent_text(low)} to {percent_text(high)})"
        rows.append([model.name, str(len(set(clusters))), str(len(rejected)), share])
    return markdown(["model", "arms", "comparisons", "rejected at 5 %, percent"], rows)


def split_p_values(measured: Measured, arm: Arm, datasets: Sequence[str]) -> list[float]:
    """Return the p-value of every split of an arm's seeds into two groups, whose sizes differ by at most 1.

    There is none with fewer than four seeds. One seed alone shows no variance, so the test would hardly ever reject,
    and the share of rejections would seem too small.
    """
    seeds = list(measured.records[arm])
    if len(seeds) < 4 or not all(set(datasets) <= set(each["evaluation"]) for each in measured.records[arm].values()):
        return []
    half = len(seeds) // 2
    splits = [set(split) for split in itertools.combinations(seeds, half)]
    if 2 * half == len(seeds):
        # Each split would occur twice, with its groups exchanged.
        splits = [split for split in splits if seeds[0] in split]
    shares = {dataset: measured.shares(arm, dataset) for dataset in datasets}
    p_values = []
    for split in splits:
        is_first = [seed in split for seed in seeds]
        p_values.append(
            crossed_contrast(
                [
                    Block(
                        group,
                        dataset,
                        sign / len(datasets),
                        values[[each is group for each in is_first]],
                        arm.is_trained,
                    )
                    for dataset, values in shares.items()
                    for group, sign in ((True, 1), (False, -1))
                ]
            ).p_value
        )
    return p_values


def verdict_numbers(measured: Measured) -> str:
    """Return the numbers behind each verdict."""
    rows = []
    for model in measured.models:
        for claim, found, judged in verdicts(measured, model):
            contrast = found.contrast
            if contrast is None:
                rows.append([model.name, claim.text, claim.measure, "0", *["not run"] * 7])
                continue
            rows.append(
                [
                    *(model.name, claim.text, claim.measure, str(found.num_seeds), str(contrast.num_problems)),
                    *(interval_text(contrast), f"{100 * contrast.standard_error:.2f}", f"{contrast.degrees:.1f}"),
                    *(p_text(contrast.p_value), p_text(judged.adjusted_p) if judged else "-"),
                    judged.verdict if judged else "incomplete",
                ]
            )
    header = [
        "model",
        "claim",
        "measure",
        "seeds",
        "problems",
        "difference",
        "standard error",
        "degrees",
        "p",
        "p (Holm)",
    ]
    return markdown([*header, "verdict"], rows)


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
            gains = [
                measured.difference([each._replace(datasets=[benchmark]) for each in comparisons])
                for benchmark in benchmarks
            ]
            texts = ["not run" if gain is None else interval_text(gain) for gain in gains]
            in_format = format_share_text(measured, [(each, benchmarks) for each in arms])
            rows.append([model.name, ARM_NAMES[arm], seeds_range(measured, arms), in_format, *texts])
    return markdown(["model", "arm", "seeds", "in the format", *benchmarks], rows) + missing_note(measured, OUTSIDE)


def outside_without_training(measured: Measured, model: ModelPlan, benchmarks: Sequence[str]) -> list[str]:
    """Return the trainings of a model without training, its share of answers in the format, and its right ones."""
    base = Arm(model.name, OUTSIDE, UNTRAINED)
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
            for comparison, gains in zip(comparisons, zip(*by_benchmark, strict=True), strict=True):
                trained = comparison.after
                category = trained.task.removeprefix(f"{OUTSIDE}_").replace("_", " ")
                in_format = format_share_text(measured, [(trained, benchmarks)])
                same = same_answer_text(measured, trained, benchmarks[-1])
                seeds = seeds_text(measured, trained)
                rows.append([model.name, ARM_NAMES[arm], category, seeds, in_format, *gains, same])
    header = ["model", "arm", "trained on", "seeds", "in the format", *benchmarks, f"same answer, {benchmarks[-1]}"]
    return markdown(header, rows)


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


def format_share_text(measured: Measured, arms: Iterable[tuple[Arm, Sequence[str]]]) -> str:
    """Return the mean share of answers in the format over datasets and trainings, or a dash without records.

    Args:
        measured: The records.
        arms: Arms with the datasets that count.

    Returns:
        The share in percent.
    """
    shares = [
        sum(found["answered"]) / (found["samples"] * len(found["answered"]))
        for arm, datasets in arms
        for record in measured.records.get(arm, {}).values()
        for dataset, found in record["evaluation"].items()
        if dataset in datasets
    ]
    return percent_text(fmean(shares)) if shares else "-"


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


def same_answer_text(measured: Measured, arm: Arm, dataset: str) -> str:
    """Return the mean over trainings of the largest share of right answers that are the same, or a dash."""
    if not measured.num_seeds(arm):
        return "-"
    digests = list(dict.fromkeys(measured.digests(arm, dataset)))
    found = [same_answer_share(dataset, digests, row) for row in measured.shares(arm, dataset).tolist()]
    known = [share for share in found if share is not None]
    return percent_text(fmean(known)) if known else "-"


def calibration(measured: Measured) -> str:
    """Return the share of simulated equal arms that the test rejects, from evidence/calibration.py."""
    if not CALIBRATION.is_file():
        return "Not simulated yet: run `python evidence/calibration.py`."
    found = json.loads(CALIBRATION.read_text(encoding="utf-8"))["rejected"]
    rows = [[case, *map(percent_text, shares.values())] for case, shares in found.items()]
    return markdown(["simulated case", *next(iter(found.values()))], rows)


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


def deviating(measured: Measured) -> str:
    """Return the records whose settings are not those of the plan."""
    found: Counter[tuple[str, str, str]] = Counter()
    for model in measured.models:
        planned = {each.name: each for part in measured.parts for each in measured.planned(part, model)}
        for training in planned.values():
            record = measured.record(training)
            for text in deviations(training, record) if record else ():
                found[model.name, training.task, text] += 1
    rows = [[model, task, str(number), text] for (model, task, text), number in found.items()]
    return markdown(["model", "task", "records", "deviation"], rows) if rows else "All records follow the plan."


def cost(measured: Measured) -> str:
    """Return the GPU minutes of each part. A training that several parts share counts in its first part."""
    by_part: dict[str, list[str]] = {part: [] for part in measured.parts}
    for model in measured.models:
        counted: set[str] = set()
        for part, cells in by_part.items():
            planned = [training for training in measured.planned(part, model) if training.name not in counted]
            counted |= {training.name for training in planned}
            missing = [training for training in measured.missing(part, model) if training in planned]
            seconds = [
                record["seconds"]["total"] / record["seconds"]["per_gpu"]
                for training in planned
                if (record := measured.record(training)) is not None
            ]
            left = f"about {measured.estimated_minutes(missing, model):.0f}" if missing else "-"
            cells += [f"{len(seconds)} of {len(planned)}", f"{sum(seconds) / 60:.0f}", left]
    rows = [[part.replace("_", " "), *cells] for part, cells in by_part.items() if set(cells) != {"0 of 0", "0", "-"}]
    columns = ("trainings", "GPU minutes", "left")
    header = ["part", *(f"{model.name}: {column}" for model in measured.models for column in columns)]
    return markdown(header, rows)


# ---- figures


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


# ---- texts


def holm_cells(measured: Measured, comparisons: Sequence[Comparison]) -> list[str]:
    """Return the difference of each comparison as text, with a star if it is significant after Holm's correction."""
    contrasts = [measured.difference([comparison]) for comparison in comparisons]
    marks = holm_marks(contrasts)
    return [
        "not run" if contrast is None else interval_text(contrast) + mark
        for contrast, mark in zip(contrasts, marks, strict=True)
    ]


def holm_marks(contrasts: Sequence[Contrast | None]) -> list[str]:
    """Return a star for each contrast that is significant after Holm's correction over all of them."""
    adjusted = iter(adjusted_p_values([contrast.p_value for contrast in contrasts if contrast]))
    return ["*" if contrast and next(adjusted) < LEVEL else "" for contrast in contrasts]


def interval_text(contrast: Contrast) -> str:
    """Return a difference with its interval, in percentage points.

    >>> interval_text(Contrast(0.051, 0.02, 9, (0.005, 0.097), 0.03, 5, 128))
    '+5.1 (+0.5 to +9.7)'
    """
    estimate, low, high = (_signed(each) for each in (contrast.estimate, *contrast.interval))
    return f"{estimate} ({low} to {high})"


def _signed(share: float) -> str:
    points = round(100 * share, 1)
    return f"{points:+.1f}" if points else "0.0"


def percent_text(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}"


def p_text(p_value: float) -> str:
    """Return a p-value.

    >>> [p_text(p_value) for p_value in (0.00001, 0.0321, 1.0)]
    ['<0.001', '0.032', '1.000']
    """
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def share_text(measured: Measured, arm: Arm, datasets: Sequence[str]) -> str:
    """Return the share of right answers of an arm in percent, or a dash without records."""
    return percent_text(measured.mean_share(arm, datasets)) if measured.num_seeds(arm) else "-"


def seeds_text(measured: Measured, arm: Arm) -> str:
    """Return the number of trainings, and of planned ones if some are missing."""
    found, planned = measured.num_seeds(arm), measured.num_planned(arm)
    return str(found) if found >= planned else f"{found} of {planned}"


def seeds_range(measured: Measured, arms: Sequence[Arm]) -> str:
    """Return the smallest and largest number of trainings of some arms."""
    numbers = sorted(map(measured.num_seeds, arms))
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def missing_note(measured: Measured, part: str) -> str:
    """Return a line for each model that lacks trainings of a part, with their estimated duration."""
    lines = []
    for model in measured.models:
        missing = measured.missing(part, model)
        if missing:
            minutes = measured.estimated_minutes(missing, model)
            total = len(measured.planned(part, model))
            lines.append(f"{model.name}: {len(missing)} of {total} trainings not run, about {minutes:.0f} GPU minutes.")
    return "".join(f"\n\n{line}" for line in lines)


def curriculum_tasks(measured: Measured, model: ModelPlan) -> dict[str, list[str]]:
    """Return the datasets of each task of the part on curricula, one per level."""
    return {training.task: measured.evaluated(training) for training in measured.planned("curriculum", model)}


def estimates(measured: Measured, comparisons: Sequence[Comparison]) -> list[Estimate]:
    """Return the difference of each comparison that has its records, as a figure draws it."""
    contrasts = [measured.difference([comparison]) for comparison in comparisons]
    return [estimate_of(contrast) for contrast in contrasts if contrast]


def estimate_of(contrast: Contrast) -> Estimate:
    """Return a contrast as a figure draws it."""
    return Estimate(contrast.estimate, *contrast.interval)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# The metrics of steps that show a collapse, with the digits that are shown.
HEALTH = {"reward": 2, "solved": 2, "answered": 2, "entropy": 2, "response_length": 0}
POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
# The headings of docs/evidence.md that show a claim's figure.
ANCHORS = {
    "intra": "within-a-category",
    "cross": "across-categories",
    "curriculum": "curricula",
    "boundary": "boundary",
    "warm_start": "warm-start",
    "outside": "outside-benchmarks",
}
TABLES: dict[str, Callable[[Measured], str]] = {
    "verdicts": verdict_table,
    "verdict_numbers": verdict_numbers,
    "intra": intra,
    "controls": controls,
    "control_means": control_means,
    "greedy_means": greedy_means,
    "cross_none": lambda measured: cross(measured, UNTRAINED),
    "cross_format": lambda measured: cross(measured, "format_only"),
    "answers_in_format": answers_in_format,
    "training_health": training_health,
    "datasets": datasets,
    "fixed_rules": fixed_rules,
    "own_category": own_category,
    "outside_means": outside_means,
    "outside": outside_by_category,
    "retention": retention,
    "curricula": curricula,
    "curriculum": lambda measured: arms_of_part(measured, "curriculum"),
    "levels": levels_and_seeds,
    "boundary_totals": boundary_totals,
    "boundary": boundary,
    "breadth": lambda measured: arms_of_part(measured, "breadth", groups=(TRAINED, UNSEEN)),
    "algorithms": lambda measured: arms_of_part(measured, "algorithms", groups=(TRAINED, UNSEEN)),
    "warm_start": lambda measured: arms_of_part(measured, "warm_start"),
    "equal_arms": equal_arms,
    "calibration": calibration,
    "learning_rates": learning_rates,
    "deviating": deviating,
    "cost": cost,
}
FIGURES: dict[str, tuple[Callable[[Measured], str | None], str]] = {
    "intra_figure": (intra_figure, "Gain of each arm over no training on trained and unseen datasets, by category"),
    "cross_figure": (cross_figure, "Gain on each evaluated category by trained category"),
    "curriculum_figure": (
        curriculum_figure,
        "Gain of each curriculum over uniform levels, at each level and over all of them",
    ),
    "boundary_figure": (boundary_figure, "pass@k before and after training"),
}

if __name__ == "__main__":
    main()
