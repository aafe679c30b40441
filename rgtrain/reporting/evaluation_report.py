"""The report of an evaluation: an HTML page with accuracies, confidence intervals and every answer."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.files import write_atomically
from rgtrain.problems.entries import load_entry
from rgtrain.reporting.evaluation_reader import Evaluation, read_evaluation
from rgtrain.reporting.levels import accuracy_by_level
from rgtrain.reporting.rendering import render

# The longest text in the page. Complete texts are in results.jsonl.
_MAX_CHARS = 20_000


def write_report(folder: Path) -> Path:
    """Write the report of a finished evaluation to report.html in its folder.

    Args:
        folder: The results folder.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The folder holds no finished evaluation, or the page cannot be written.
    """
    page = folder / "report.html"
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
    answers = [_shown(answer, number) for number, group in enumerate(by_dataset) for answer in group]
    return render(
        "report.html.j2",
        script="report.js",
        summary=summary,
        bars=_bars(summary),
        repeating=[numbers for numbers in summary["datasets"] if numbers["num_questions"] != numbers["num_problems"]],
        levels=[pair for pair in zip(summary["datasets"], levels, strict=True) if pair[1]],
        # Compressed because it holds every answer, and in base64 so that no browser takes it for markup.
        answers=base64.b64encode(gzip.compress(json.dumps(answers).encode())).decode(),
    )


def _bars(summary: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the kind, label and measures of each bar of the chart: overall, categories, datasets.

    Without a single answer, because the endpoint refused all requests, there is no bar.
    """
    bars = [("overall", "overall", summary["overall"])]
    if len(summary["categories"]) > 1:
        bars += [("category", numbers["category"], numbers) for numbers in summary["categories"]]
    bars += [("dataset", numbers["dataset"], numbers) for numbers in summary["datasets"]]
    return [bar for bar in bars if None not in (bar[2]["strict_accuracy"], bar[2]["strict_accuracy_interval"])]


def _shown(answer: Answer, dataset: int) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "name": f"{answer.dataset} {answer.index}" + (f" answer {answer.repeat + 1}" if answer.repeat else ""),
        "verdict": _verdict(answer),
        "score": answer.score,
        "error": f"refused by the endpoint: {answer.refused}" if answer.refused else answer.error,
        "tokens": answer.tokens,
        "cut": answer.finish_reason == "length",
        "question": _clipped(answer.question),
        "completion": _clipped(answer.completion),
        "answer": _clipped(answer.answer),
        "expected": _expected(answer),
    }


def _verdict(answer: Answer) -> str:
    if answer.error or answer.refused:
        return "error"
    if answer.answer is None:
        return "none"
    return "right" if answer.is_right else "partly" if answer.score > 0 else "wrong"


def _expected(answer: Answer) -> str | None:
    try:
        expected = load_entry(answer.entry).get("answer") if answer.entry else None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return "(the entry in results.jsonl is damaged)"
    return None if expected is None else _clipped(str(expected))


def _clipped(text: str | None) -> str | None:
    if text is None or len(text) <= _MAX_CHARS:
        return text
    return f"{text[:_MAX_CHARS]}… ({len(text) - _MAX_CHARS} more characters in results.jsonl)"
