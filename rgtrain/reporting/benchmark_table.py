"""The figures of outside benchmarks, with confidence intervals by question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgtrain.stats import mean, mean_interval
from rgtrain.tables import distinct_of, percent, printed_table


@dataclass(frozen=True)
class BenchmarkFigure:
    """One measure of one benchmark.

    Attributes:
        task: The name of the benchmark, or BENCHMARK/SUBTASK.
        metric: The name of the measure.
        num_problems: The number of problems.
        num_questions: The number of distinct prompts among them.
        mean: The mean over the problems, in [0, 1].
        interval: Its 95 % confidence interval (see mean_interval).
    """

    task: str
    metric: str
    num_problems: int
    num_questions: int
    mean: float
    interval: tuple[float, float]


def benchmark_figures(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[BenchmarkFigure]:
    """Compute the figures of benchmarks.

    Args:
        samples: By benchmark, the harness's records of all problems. Each has the names of its metrics in "metrics",
            their values in [0, 1] under these names, and a "prompt_hash". If the problem in "doc" has a "subtask", each
            subtask has a figure too.

    Returns:
        A figure for each metric of each benchmark, then the accuracy of each of its subtasks.
    """
    figures = []
    for task, records in samples.items():
        for metric in dict.fromkeys(name for record in records for name in record["metrics"]):
            figures.append(_figure(task, metric, records))
        by_subtask: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            if subtask := record.get("doc", {}).get("subtask"):
                by_subtask.setdefault(subtask, []).append(record)
        figures += [_figure(f"{task}/{subtask}", "accuracy", group) for subtask, group in sorted(by_subtask.items())]
    return figures


def _figure(task: str, metric: str, records: Sequence[Mapping[str, Any]]) -> BenchmarkFigure:
    measured = [record for record in records if metric in record]
    values, questions = ([record[key] for record in measured] for key in (metric, "prompt_hash"))
    interval = mean_interval(values, clusters=questions)
    return BenchmarkFigure(task, metric, len(values), len(set(questions)), mean(values), interval)


def benchmark_table(figures: Sequence[BenchmarkFigure]) -> str:
    """Return the figures as a text table, in percent."""
    rows = [
        (
            figure.task,
            figure.metric,
            distinct_of(figure.num_problems, num_distinct=figure.num_questions),
            percent(figure.mean, figure.interval),
        )
        for figure in figures
    ]
    return printed_table(("benchmark", "figure", "problems", "%"), rows, num_left=2)
