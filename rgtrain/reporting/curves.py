"""Turn the metrics of runs into curves for charts, of at most a few hundred points each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from rgtrain.checkpoints.metrics_file import DATASET_IN_METRIC
from rgtrain.reporting.run_reader import RunRecord, is_number

# A curve of more steps is drawn in so many segments.
_MAX_POINTS = 400
# A curve is smoothed over the number of its steps divided by this.
_SMOOTHED_SHARE = 40
# In charts of several runs, which show one dataset each.
_MAX_CHARTS_PER_METRIC = 24


@dataclass(frozen=True)
class ChartKind:
    """A kind of chart.

    Attributes:
        title: The title.
        unit: The unit of the values.
        note: A sentence about the values, such as the problems that they come from.
        pattern: A pattern of the names of the metrics. Its group `label` names the curve, and `part` completes the
            title; there is a chart for each part.
        stacked: Whether the curves add up.
        bounds: The range of the values if it is known, such as (0, 1).
    """

    title: str
    unit: str
    note: str
    pattern: str
    stacked: bool = False
    bounds: tuple[float | None, float | None] = (None, None)


_SHARE = (0.0, 1.0)
_FROM_0 = (0.0, None)
SECTIONS: Mapping[str, Sequence[ChartKind]] = {
    "Learning": (
        ChartKind(
            "Held-out accuracy",
            "mean score",
            "Validation problems, never trained on; partial credit counts.",
            rf"val-core/(?P<label>{DATASET_IN_METRIC})/acc/mean@\d++",
            bounds=_SHARE,
        ),
        ChartKind(
            "Reward", "reward", "Mean over the training batch.", r"critic/rewards/(?P<label>mean)", bounds=(None, None)
        ),
        ChartKind(
            "Training accuracy",
            "mean score",
            "This step's training problems at the curriculum's level; partial credit counts.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/acc",
            bounds=_SHARE,
        ),
        ChartKind(
            "Solved in training",
            "share of completions",
            "Completions with score 1.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/solved",
            bounds=_SHARE,
        ),
        ChartKind(
            "Reward part",
            "value",
            "Unweighted mean.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/reward_(?P<part>[^/]++)",
        ),
        ChartKind(
            "Groups without signal",
            "share of groups",
            "All completions of the group are equal in accuracy or in reward, so it teaches nothing.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/zero_signal",
            bounds=_SHARE,
        ),
    ),
    "Responses": (
        ChartKind(
            "Response length",
            "tokens",
            "Mean over completions.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/response_length",
            bounds=_FROM_0,
        ),
        ChartKind(
            "Cut off",
            "share of completions",
            "As long as the limit.",
            r"(?P<label>response_length)/clip_ratio",
            bounds=_SHARE,
        ),
        ChartKind(
            "Answered",
            "share of completions",
            "An answer was found.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/answered",
            bounds=_SHARE,
        ),
    ),
    "Update": (
        ChartKind(
            "Entropy",
            "nats per token",
            "Before the update; sampled_entropy is estimated from the sampled tokens alone.",
            r"(?:actor|rollout)/(?P<label>entropy|sampled_entropy)",
            bounds=_FROM_0,
        ),
        ChartKind(
            "KL",
            "nats per token",
            "To the reference model (kl_loss, reward_kl_penalty), and from the old to the new policy (ppo_kl).",
            r"actor/(?P<label>kl_loss|reward_kl_penalty|ppo_kl)",
        ),
        ChartKind("Gradient norm", "", "Before clipping.", r"actor/(?P<label>grad_norm)", bounds=_FROM_0),
        ChartKind(
            "Rollout gap",
            "nats",
            "Mean difference between vLLM's and the engine's log-probability of the same token.",
            r"actor/rollout_gap/(?P<label>mean)",
            bounds=_FROM_0,
        ),
        ChartKind(
            "Clipped", "share of tokens", "The ratio was clipped.", r"actor/(?P<label>pg_clipfrac)", bounds=_FROM_0
        ),
        ChartKind("Learning rate", "", "", r"actor/(?P<label>lr)", bounds=_FROM_0),
    ),
    "Curriculum and mixture": (
        ChartKind("Level", "level", "", rf"curriculum/(?P<label>{DATASET_IN_METRIC})/level", bounds=_FROM_0),
        ChartKind(
            "Share of the mixture",
            "probability",
            "The probability of drawing the dataset.",
            rf"curriculum/(?P<label>{DATASET_IN_METRIC})/share",
            bounds=_SHARE,
        ),
        ChartKind(
            "Success by level of",
            "mean score",
            "Training problems of the level.",
            rf"curriculum/(?P<part>{DATASET_IN_METRIC})/success_at_(?P<label>level_\d++)",
            bounds=_SHARE,
        ),
    ),
    "Verifiers": (
        ChartKind(
            "Answers not judged because of",
            "answers per step",
            "They score 0.",
            rf"train/(?P<label>{DATASET_IN_METRIC})/num_(?P<part>timeout|memory|crash|exception)",
            bounds=_FROM_0,
        ),
    ),
    "Speed": (
        ChartKind(
            "Seconds by phase",
            "seconds",
            "Parts of a step.",
            r"timing_s/(?P<label>gen|reward|old_log_prob|ref|values|adv|update_critic|update_actor|update_weights"
            r"|save_checkpoint|testing)",
            stacked=True,
            bounds=_FROM_0,
        ),
        ChartKind("Throughput", "tokens per second and GPU", "", r"perf/(?P<label>throughput)", bounds=_FROM_0),
        ChartKind("Peak memory", "GB", "", r"actor/perf/(?P<label>max_memory_allocated_gb)", bounds=_FROM_0),
    ),
}


@dataclass(frozen=True)
class Curve:
    """A smoothed curve, and the range of the values behind it.

    Attributes:
        label: The name of the curve.
        color: The number of its color.
        steps: The training steps of its points.
        values: The smoothed value of each point.
        low: The lowest value of each segment, or mean minus standard deviation over the runs.
        high: The highest value of each segment, or mean plus standard deviation over the runs.
    """

    label: str
    color: int
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A chart of curves."""

    title: str
    unit: str
    note: str
    stacked: bool
    bounds: tuple[float | None, float | None]
    curves: Sequence[Curve]


@dataclass
class RunGroup:
    """Runs that differ only in their seeds. Several are drawn as one band.

    Attributes:
        name: The name of the run, or of the first one with the number of runs.
        runs: The runs.
    """

    name: str
    runs: list[RunRecord] = field(default_factory=list)


def charts_by_section(groups: Sequence[RunGroup]) -> dict[str, list[Chart]]:
    """Return the charts of each section, without sections and charts that have no values.

    Args:
        groups: The runs. With one group, a chart has a curve per dataset. With several, there is a chart per dataset
            with a curve per group.

    Returns:
        The charts by the title of their section.
    """
    names = list(dict.fromkeys(name for group in groups for run in group.runs for one in run.records for name in one))
    sections = {}
    for title, kinds in SECTIONS.items():
        charts = [chart for kind in kinds for chart in _charts(kind, names, groups)]
        if charts:
            sections[title] = charts
    return sections


def _charts(kind: ChartKind, names: Sequence[str], groups: Sequence[RunGroup]) -> list[Chart]:
    pattern = re.compile(kind.pattern)
    found = [
        (match.groupdict().get("part"), match["label"], name) for name in names if (match := pattern.fullmatch(name))
    ]
    charts = []
    for part in dict.fromkeys(part for part, _, _ in found):
        title = f"{kind.title} {part}" if part else kind.title
        labelled = {label: name for one, label, name in found if one == part}
        if len(groups) == 1:
            curves = [
                curve
                for color, (label, name) in enumerate(labelled.items())
                if (curve := _curve(name, groups[0].runs, label=label, color=color, filled=kind.stacked))
            ]
            charts.append(_chart(kind, title, curves))
            continue
        for label, name in list(labelled.items())[:_MAX_CHARTS_PER_METRIC]:
            of_label = title if len(labelled) == 1 else f"{title}: {label}"
            curves = [
                curve
                for color, group in enumerate(groups)
                if (curve := _curve(name, group.runs, label=group.name, color=color, filled=kind.stacked))
            ]
            # Curves of different runs do not add up.
            charts.append(_chart(kind, of_label, curves, stacked=False))
    # A count that is always 0 needs no chart.
    return [chart for chart in charts if any(any(curve.high) or any(curve.low) for curve in chart.curves)]


def _chart(kind: ChartKind, title: str, curves: Sequence[Curve], *, stacked: bool | None = None) -> Chart:
    return Chart(title, kind.unit, kind.note, kind.stacked if stacked is None else stacked, kind.bounds, curves)


def _curve(name: str, runs: Sequence[RunRecord], *, label: str, color: int, filled: bool) -> Curve | None:
    """Return the curve of a metric, over the steps that all runs have, or None if no run has it.

    Args:
        name: The metric.
        runs: Runs that differ only in their seeds.
        label: The name of the curve.
        color: The number of its color.
        filled: Whether a step without the metric counts as 0, as a phase that it did not have.

    Returns:
        The curve.
    """
    series = [_series(run, name, filled=filled) for run in runs]
    series = [one for one in series if one]
    if not series:
        return None
    steps = sorted(set.intersection(*map(set, series)))
    columns = [[one[step] for one in series] for step in steps]
    means = [fmean(column) for column in columns]
    spread = [stdev(column) if len(column) > 1 else 0.0 for column in columns]
    smooth = smoothed(means)
    low = [mean - deviation for mean, deviation in zip(means, spread, strict=True)]
    high = [mean + deviation for mean, deviation in zip(means, spread, strict=True)]
    segments = _segments(len(steps))
    return Curve(
        label,
        color,
        [steps[(begin + end - 1) // 2] for begin, end in segments],
        [_short(fmean(smooth[begin:end])) for begin, end in segments],
        [_short(min(low[begin:end])) for begin, end in segments],
        [_short(max(high[begin:end])) for begin, end in segments],
    )


def _series(run: RunRecord, name: str, *, filled: bool) -> dict[int, float]:
    series = {record["step"]: float(record[name]) for record in run.records if is_number(record.get(name))}
    return {record["step"]: series.get(record["step"], 0.0) for record in run.steps} if filled and series else series


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average of values, over a fortieth of their number, without a start-up bias.

    >>> smoothed([1.0, 3.0])
    [1.0, 3.0]
    """
    length = len(values) / _SMOOTHED_SHARE
    if length <= 1:
        return list(values)
    keep = 1 - 1 / length
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight)
    return averages


def _segments(num_steps: int) -> list[tuple[int, int]]:
    num_segments = min(num_steps, _MAX_POINTS)
    ends = [num_steps * (position + 1) // num_segments for position in range(num_segments)]
    return list(zip([0, *ends], ends, strict=False))


def _short(value: float) -> float:
    return float(f"{value:.5g}")
