"""Finished evaluations, as reports read them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluating.answers import Answer
from rgtrain.evaluating.results import ResultsFolder, read_answers


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its summary (see `summarise`) and all its answers, in the problems' order."""

    folder: Path
    summary: dict[str, Any]
    answers: Sequence[Answer]

    @property
    def model(self) -> str:
        """The model's path as it was given."""
        return self.summary["model"]["path"]

    def answers_by_dataset(self) -> list[list[Answer]]:
        """The answers to each of the summary's datasets, in its order."""
        groups, first = [], 0
        for dataset in self.summary["datasets"]:
            problems = range(first, first + dataset["size"])
            groups.append([answer for answer in self.answers if answer.problem in problems])
            first = problems.stop
        return groups


def read_evaluation(path: Path) -> Evaluation:
    """The finished evaluation in a folder, which its summary.json may stand for.

    Raises ConfigError where there is none.
    """
    folder = ResultsFolder(path if path.is_dir() else path.parent)
    try:
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
        summary["config"], summary["datasets"], summary["overall"], summary["model"]["path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        unfinished = ": the same evaluate_model.py command again finishes it" if folder.results.exists() else ""
        raise ConfigError(
            f"{path} is no finished evaluation of evaluate_model.py{unfinished} ({error!r:.200})"
        ) from error
    return Evaluation(folder.path, summary, read_answers(folder.results))
