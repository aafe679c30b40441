"""Tables of verdicts, of the checks of the statistics, and of costs."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence

from evidence.calibration import PATH as CALIBRATION
from evidence.cells import interval_text, markdown, p_text, percent_text
from evidence.claims import LEVEL, verdicts
from evidence.measured import Arm, Measured
from evidence.records import deviations
from evidence.training_plan import BASE
from rgtrain.stats import Block, crossed_contrast, mean, mean_interval


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
        rows.append([f"[{claim.text}](#{claim.section})", claim.measure, *cells])
    return markdown(["claim", "measure", *(model.name for model in measured.models)], rows)


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


def calibration(measured: Measured) -> str:
    """Return the share of simulated equal arms that the test rejects, from evidence/calibration.py."""
    if not CALIBRATION.is_file():
        return "Not simulated yet: run `python evidence/calibration.py`."
    found = json.loads(CALIBRATION.read_text(encoding="utf-8"))["rejected"]
    rows = [[case, *map(percent_text, shares.values())] for case, shares in found.items()]
    return markdown(["simulated case", *next(iter(found.values()))], rows)


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
