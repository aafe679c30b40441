"""Read finished evaluations for reports and comparisons."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.measures import measure
from rgtrain.evaluation.results import ResultsFolder, read_answers, read_results_json
from rgtrain.evaluation.summary import problems_digest
from rgtrain.provenance import masked_values


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: The results folder.
        summary: The values that `summarise` returned.
        answers: All answers, ordered by problem and repeat.
    """

    folder: Path
    summary: dict[str, Any]
    answers: Sequence[Answer]

    @property
    def model(self) -> str:
        """The model's path as the user gave it."""
        return self.summary["model"]["path"]

    def answers_by_dataset(self) -> list[list[Answer]]:
        """Return a list of answers for each dataset, in the order of the summary's datasets."""
        groups, first = [], 0
        for dataset in self.summary["datasets"]:
            problems = range(first, first + dataset["size"])
            groups.append([answer for answer in self.answers if answer.problem in problems])
            first = problems.stop
        return groups


def read_evaluation(path: Path) -> Evaluation:
    """Read a finished evaluation. Secrets that an older version may have written are masked.

    Args:
        path: The results folder, or the summary.json in it.

    Returns:
        The evaluation. Its summary has the form that `summarise` writes, and agrees with the answers.

    Raises:
        ConfigError: The evaluation is not finished, or one of its files is damaged.
    """
    folder = ResultsFolder(path if path.is_dir() else path.parent)
    command = "the same evaluate_model.py command"
    if not folder.summary.is_file():
        fix = f"; {command} finishes it" if folder.results.exists() else "; give a results folder of evaluate_model.py"
        raise ConfigError(f"{path} is not a finished evaluation{fix}")
    fix = f"delete it, and {command} makes it again from results.jsonl"
    summary = masked_values(read_results_json(folder.summary, fix=fix))
    _check(summary, _form({"num_answers": _is_count}), folder.summary, fix=fix)
    answers = sorted(read_answers(folder.results), key=lambda answer: answer.key)
    evaluation = Evaluation(folder.path, summary, answers)
    groups = evaluation.answers_by_dataset()
    expected = [(dataset["num_answers"], dataset["problems_digest"]) for dataset in summary["datasets"]]
    if sum(map(len, groups)) != len(answers) or [(len(group), problems_digest(group)) for group in groups] != expected:
        raise ConfigError(
            f"{folder.results} is damaged (its {len(answers)} answers are not the {summary['overall']['num_answers']} "
            f"that summary.json counts); delete summary.json, and {command} asks for the missing answers"
        )
    if not summary["overall"].keys() >= _NEW_MEASURES:
        _measure_again(evaluation)
    _check(summary, _form(_MEASURES), folder.summary, fix=fix)
    ks = [
        measures[name].keys()
        for measures in (summary["overall"], *summary["datasets"])
        for name in ("pass_at", "majority_at")
    ]
    fault = next(("the values of k differ within summary" for keys in ks if keys != ks[0]), _unknown_mean(summary))
    if fault:
        raise ConfigError(f"{folder.summary} is damaged ({fault}); {fix}")
    return evaluation


def read_figures(folder: Path) -> dict[str, Any]:
    """Read the name, model and overall figures of a finished evaluation, without its answers.

    Args:
        folder: The results folder.

    Returns:
        The summary. Only `name`, `model.path`, and the accuracy and number of problems in `overall` are checked.
        Secrets that an older version may have written are masked.

    Raises:
        ConfigError: The summary is damaged.
    """
    path, fix = ResultsFolder(folder).summary, "delete it, and evaluate the model again"
    summary = masked_values(read_results_json(path, fix=fix))
    overall = {
        "num_problems": _is_count,
        "strict_accuracy": _is_number_or_none,
        "strict_accuracy_interval": _is_interval_or_none,
    }
    _check(summary, {"name": _is_text, "model": {"path": _is_text}, "overall": overall}, path, fix=fix)
    return summary


def _check(summary: dict[str, Any], form: Any, path: Path, *, fix: str) -> None:
    fault = _fault(summary, form, "summary")
    if fault:
        raise ConfigError(f"{path} is damaged ({fault}); {fix}")


def _unknown_mean(summary: dict[str, Any]) -> str | None:
    """Describe a mean that is unknown although there are answers. Return None if there is none."""
    for measures in (summary["overall"], *summary["categories"], *summary["datasets"]):
        is_unknown = measures["num_refused"] == measures["num_answers"]
        for name in ("strict_accuracy", "strict_accuracy_interval", "mean_score"):
            if (measures[name] is None) != is_unknown:
                return f"{name} is {measures[name]!r:.60} with {measures['num_refused']} refused requests"
    return None


def _measure_again(evaluation: Evaluation) -> None:
    """Replace the measures in the summary of an older version by those of its answers."""
    summary = evaluation.summary
    by_category = [
        [answer for answer in evaluation.answers if answer.category == numbers["category"]]
        for numbers in summary["categories"]
    ]
    of_answers = [evaluation.answers, *by_category, *evaluation.answers_by_dataset()]
    for numbers, answers in zip(
        (summary["overall"], *summary["categories"], *summary["datasets"]), of_answers, strict=True
    ):
        if answers:
            # Through JSON, because the other summaries come from it.
            numbers |= json.loads(json.dumps(dataclasses.asdict(measure(answers))))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_interval_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, list) and [*map(_is_number, value)] == [True, True])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_anything(value: Any) -> bool:
    return True


# The form of a summary is a check, a mapping from keys to forms, a list of one form for all items, or a _ByKey.
@dataclass(frozen=True)
class _ByKey:
    """The form of a mapping with arbitrary keys, whose values all have one form."""

    form: Any


_ESTIMATES = _ByKey({"mean": _is_number_or_none, "error": _is_number_or_none, "interval": _is_interval_or_none})
_MEASURES = {
    **dict.fromkeys(("num_problems", "num_questions", "num_answers", "num_refused", "num_timeouts"), _is_count),
    **dict.fromkeys(("strict_accuracy", "strict_accuracy_error", "mean_score", "mean_score_error"), _is_number_or_none),
    **dict.fromkeys(("share_without_answer", "share_truncated", "mean_tokens"), _is_number_or_none),
    "effective_sample_size": _is_number_or_none,
    **dict.fromkeys(("strict_accuracy_interval", "mean_score_interval"), _is_interval_or_none),
    "pass_at": _ESTIMATES,
    "majority_at": _ESTIMATES,
    "num_scorer_errors": _ByKey(_is_count),
}
# Measures that older versions did not write.
_NEW_MEASURES = {"num_refused", "num_questions", "effective_sample_size", "mean_score_interval"}


def _form(measures: dict[str, Any]) -> dict[str, Any]:
    """Return the form of a summary with these measures."""
    return {
        "name": _is_text,
        "model": {"path": _is_text},
        "config": {"temperature": _is_number, "max_tokens": _is_count},
        "prompts": {"first_prompt": [{"role": _is_text, "content": _is_text}]},
        "command": _is_text,
        "commit": _is_anything,
        "versions": _ByKey(_is_anything),
        "overall": measures,
        "categories": [{"category": _is_text, **measures}],
        "datasets": [
            {
                **dict.fromkeys(("category", "dataset", "problems_digest"), _is_text),
                "size": _is_count,
                "params": _ByKey(_is_anything),
                **measures,
            }
        ],
    }


def _fault(value: Any, form: Any, name: str) -> str | None:
    """Describe the first deviation of `value` from its form. Return None if there is none."""
    if isinstance(form, list):
        if not isinstance(value, list) or not value:
            return f"{name} is not a list with items"
        faults = (_fault(item, form[0], f"{name}[{number}]") for number, item in enumerate(value))
    elif isinstance(form, dict | _ByKey):
        if not isinstance(value, dict):
            return f"{name} is not a mapping"
        forms = form if isinstance(form, dict) else dict.fromkeys(value, form.form)
        missing = next((key for key in forms if key not in value), None)
        if missing is not None:
            return f"{name} has no {missing}"
        faults = (_fault(value[key], inner, f"{name}.{key}") for key, inner in forms.items())
    else:
        return None if form(value) else f"{name} is {value!r:.60}"
    return next(filter(None, faults), None)
