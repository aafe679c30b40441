"""The report of an evaluation: an HTML page with accuracies, confidence intervals and every answer."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.results import ResultsFolder
from rgtrain.files import write_atomically
from rgtrain.reporting.answer_data import answer_data, problem_data, text_limit
from rgtrain.reporting.bar_charts import Bar, bar_chart
from rgtrain.reporting.evaluation_reader import Evaluation, read_evaluation
from rgtrain.reporting.levels import accuracy_by_level
from rgtrain.reporting.rendering import packed, render
from rgtrain.tables import percent


def write_report(folder: Path) -> Path:
    """Write the report of a finished evaluation to report.html in its folder.

    Args:
        folder: The results folder.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The folder holds no finished evaluation, or the page cannot be written.
    """
    page = ResultsFolder(folder).report
    content = report(read_evaluation(folder))
    try:
        write_atomically(page, content)
    except OSError as error:
        raise ConfigError(
            f"cannot write {page} ({error.strerror}); free some space and run the same command again"
        ) from error
    return page


def report(evaluation: Evaluation) -> str:
    """Return the page: a chart with error bars, a sortable table, accuracy by difficulty, and all answers."""
    summary = evaluation.summary
    by_dataset = evaluation.answers_by_dataset()
    levels = [accuracy_by_level([answer for answer in answers if not answer.refused]) for answers in by_dataset]
    limit = text_limit(evaluation.answers)
    problems = [
        _problem(group, number, limit) for number, answers in enumerate(by_dataset) for group in _grouped(answers)
    ]
    return render(
        "report.html.j2",
        script="report.js",
        summary=summary,
        chart=bar_chart(_bars(summary)),
        repeating=[numbers for numbers in summary["datasets"] if numbers["num_questions"] != numbers["num_problems"]],
        levels=[pair for pair in zip(summary["datasets"], levels, strict=True) if pair[1]],
        max_repeats=max((len(problem["answers"]) for problem in problems), default=0),
        difficulties=any(problem["difficulty"] for problem in problems),
        data=packed(json.dumps(problems, ensure_ascii=False).encode("utf-8", "replace")),
    )


def _bars(summary: dict[str, Any]) -> list[Bar]:
    """Return the bars of the chart: overall, categories, datasets.

    Without a single answer, because the endpoint refused all requests, there is no bar.
    """
    rows = [("overall", True, summary["overall"])]
    if len(summary["categories"]) > 1:
        rows += [(numbers["category"], True, numbers) for numbers in summary["categories"]]
    rows += [(numbers["dataset"], False, numbers) for numbers in summary["datasets"]]
    return [
        Bar(label, share, tuple(interval), percent(share), is_sum)
        for label, is_sum, numbers in rows
        if None not in (share := numbers["strict_accuracy"], interval := numbers["strict_accuracy_interval"])
    ]


def _grouped(answers: Sequence[Answer]) -> list[list[Answer]]:
    return [list(group) for _, group in itertools.groupby(answers, key=lambda answer: answer.problem)]


def _problem(answers: Sequence[Answer], dataset: int, max_chars: int) -> dict[str, Any]:
    return {
        "dataset": dataset,
        **problem_data(answers[0], max_chars=max_chars),
        "answers": [answer_data(answer, max_chars=max_chars) for answer in answers],
    }
