"""The page of a comparison: charts, tables, settings, and the answers of all models to each question."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.files import write_atomically
from rgtrain.reporting.answer_data import answer_data, problem_data, text_limit
from rgtrain.reporting.bar_charts import Bar, bar_chart
from rgtrain.reporting.comparison import Comparison, Row, outcome
from rgtrain.reporting.comparison_tables import LEGEND, header, notes, rows
from rgtrain.reporting.evaluation_reader import Evaluation
from rgtrain.reporting.model_names import distinct_names
from rgtrain.reporting.rendering import packed, render

# The longest value of a setting, in characters.
_MAX_VALUE = 1000


@dataclass(frozen=True)
class SettingRow:
    """A setting of all compared evaluations.

    Attributes:
        key: The name of the setting.
        values: The value of each evaluation, as text.
    """

    key: str
    values: Sequence[str]

    @property
    def differs(self) -> bool:
        """Whether the values are not all equal."""
        return len(set(self.values)) > 1


def write_comparison(evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison], *, page: Path) -> None:
    """Write the page of a comparison.

    Args:
        evaluations: The evaluations, the baseline first.
        comparisons: Their comparison (see `compare`).
        page: The HTML file, which is created or replaced.

    Raises:
        ConfigError: The page cannot be written.
    """
    content = comparison_page(evaluations, comparisons, page=page)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, content)
    except OSError as error:
        raise ConfigError(f"cannot write {page} ({error.strerror}); choose another file with --html") from error


def comparison_page(evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison], *, page: Path) -> str:
    """Return the page of a comparison.

    Args:
        evaluations: The evaluations, the baseline first.
        comparisons: Their comparison (see `compare`).
        page: The place of the page, from which it links to the reports.
    """
    names = distinct_names([evaluation.model for evaluation in evaluations])
    files = [evaluation.folder / "report.html" for evaluation in evaluations]
    reports = [_link(file, page) if file.is_file() else None for file in files]
    data = {
        "models": names,
        "labels": [comparison.labels for comparison in comparisons],
        "reports": reports,
        # The way back from a report.
        "page": [_link(page, file) for file in files],
        "questions": _questions(evaluations),
    }
    summary = evaluations[0].summary
    categories = [numbers["category"] for numbers in summary["categories"]]
    return render(
        "comparison.html.j2",
        script="comparison.js",
        title=f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} and {len(names) - 1} other models",
        summary=summary,
        models=list(zip([one.model for one in evaluations], names, reports, strict=True)),
        comparisons=comparisons,
        charts=[bar_chart(_bars(comparison)) for comparison in comparisons],
        tables=[list(zip(rows(one), _filters(one, categories), strict=True)) for one in comparisons],
        header_of=header,
        notes_of=notes,
        legend=LEGEND,
        datasets=[row.name for row in comparisons[0].datasets],
        categories=categories if len(categories) > 1 else [],
        settings=_settings(evaluations),
        data=packed(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")),
    )


def _link(target: Path, page: Path) -> str | None:
    """Return the relative address of a page from another one; None if there is no way, for example to another drive."""
    try:
        return quote(os.path.relpath(target.absolute(), page.absolute().parent).replace(os.sep, "/"))
    except ValueError:
        return None


def _bars(comparison: Comparison) -> list[Bar]:
    sums = [comparison.overall, *comparison.categories]
    return [_bar(row, is_sum=True) for row in sums] + [_bar(row, is_sum=False) for row in comparison.datasets]


def _bar(row: Row, *, is_sum: bool) -> Bar:
    points = f"{100 * row.difference:+.1f}"
    return Bar(row.name, row.difference, row.interval, "0.0" if points in ("+0.0", "-0.0") else points, is_sum)


def _filters(comparison: Comparison, categories: Sequence[str]) -> list[str | None]:
    """Return the value of the page's dataset filter for each row of the table; None for rows of pass@k."""
    return [
        *(str(number) for number in range(len(comparison.datasets))),
        *(f"c{number}" for number in range(len(categories)) if comparison.categories),
        "",
        *(None for _ in comparison.at_k),
    ]


def _questions(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    limit = text_limit([answer for evaluation in evaluations for answer in evaluation.answers])
    categories = {numbers["category"]: number for number, numbers in enumerate(evaluations[0].summary["categories"])}
    found = []
    by_dataset = zip(*(evaluation.answers_by_dataset() for evaluation in evaluations), strict=True)
    for number, by_model in enumerate(by_dataset):
        questions: dict[str, list[list[Answer]]] = {}
        for model, answers in enumerate(by_model):
            for answer in answers:
                questions.setdefault(answer.fingerprint, [[] for _ in evaluations])[model].append(answer)
        for group in questions.values():
            first = next(answer for answers in group for answer in answers)
            found.append(
                {
                    **problem_data(first, max_chars=limit),
                    "dataset": number,
                    "category": categories.get(first.category),
                    "outcomes": [outcome(group[0], answers) for answers in group[1:]],
                    "answers": [[answer_data(answer, max_chars=limit) for answer in answers] for answers in group],
                }
            )
    return found


def _settings(evaluations: Sequence[Evaluation]) -> list[SettingRow]:
    """Return the models, settings and versions of all evaluations, those that differ first."""
    flat = [_flat(evaluation.summary) for evaluation in evaluations]
    found = [
        SettingRow(key, [values.get(key, "-") for values in flat]) for key in dict.fromkeys(k for v in flat for k in v)
    ]
    return sorted(found, key=lambda row: not row.differs)


def _flat(summary: dict[str, Any]) -> dict[str, str]:
    model = {("weights' hash" if key == "digest" else key): value for key, value in summary["model"].items()}
    prompts = summary["prompts"]
    values = {f"model: {key}": value for key, value in model.items()}
    values |= {"model: trained from": summary.get("trained_from"), "command": summary["command"]}
    values |= {"commit": summary["commit"], "prompts' hash": prompts.get("digest")}
    values |= {f"version: {name}": version for name, version in summary["versions"].items()}
    values |= {key: value for key, value in summary["config"].items() if key not in ("model_path", "datasets")}
    return {key: _value(value) for key, value in values.items() if value not in (None, {}, [], "")}


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"
