"""Texts of the cells of the evidence's tables, and tables in Markdown."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from evidence.claims import LEVEL
from evidence.measured import Arm, Comparison, Measured
from evidence.right_answers import same_answer_share
from rgtrain.stats import Contrast, adjusted_p_values

# The arms of the categories, in the order of tables and figures.
ARM_NAMES = {
    "accuracy": "accuracy",
    "format_only": "format only",
    "random_reward": "random reward",
    "inverted": "inverted accuracy",
    "sft": "SFT",
    "sft_then_rl": "SFT, then RL",
}


def holm_cells(measured: Measured, comparisons: Sequence[Comparison]) -> list[str]:
    """Return the difference of each comparison as text, with a star if it is significant after Holm's correction."""
    contrasts = [measured.difference([comparison]) for comparison in comparisons]
    marks = holm_marks(contrasts)
    return [
        "not run" if contrast is None else interval_text(contrast) + mark
        for contrast, mark in zip(contrasts, marks, strict=True)
    ]


def mean_cell(measured: Measured, comparisons: Sequence[Comparison]) -> str:
    """Return the mean difference over the comparisons that have their records, and their number if some are missing."""
    complete = [each for each in comparisons if measured.is_complete(each)]
    contrast = measured.difference(complete)
    if contrast is None:
        return "not run"
    partial = f" [{len(complete)} of {len(comparisons)}]" if len(complete) < len(comparisons) else ""
    return interval_text(contrast) + partial


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


def same_answer_text(measured: Measured, arm: Arm, dataset: str) -> str:
    """Return the mean over trainings of the largest share of right answers that are the same, or a dash."""
    if not measured.num_seeds(arm):
        return "-"
    digests = list(dict.fromkeys(measured.digests(arm, dataset)))
    found = [same_answer_share(dataset, digests, row) for row in measured.shares(arm, dataset).tolist()]
    known = [share for share in found if share is not None]
    return percent_text(fmean(known)) if known else "-"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
