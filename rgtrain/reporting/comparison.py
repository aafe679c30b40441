"""Compare models on the same problems: differences to the first model, their confidence intervals and p-values."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.declared_keys import Scope
from rgtrain.evaluation.evaluation_config import KEYS
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.reporting.evaluation_reader import Evaluation
from rgtrain.stats import adjusted_p_values, bootstrap_interval, mean, sign_test

# Settings that may differ between evaluations of different models.
_MAY_DIFFER = {key.field.name for key in KEYS.values() if key.scope != Scope.COMPARISON}


@dataclass(frozen=True)
class Row:
    """Two models on one dataset, or on all datasets.

    Attributes:
        name: The name of the dataset, or "overall".
        num_problems: The number of problems.
        before: The strict accuracy of the first model.
        before_error: Its standard error; None for a single problem.
        after: The strict accuracy of the second model.
        after_error: Its standard error; None for a single problem.
        interval: The 95 % bootstrap confidence interval of the difference; None if all problems have the same
            difference.
        num_won: Problems that the second model solves more often than the first.
        num_lost: Problems that the second model solves less often than the first.
        p_value: The p-value of the sign test on `num_won` and `num_lost`.
        adjusted_p_value: The p-value adjusted for all datasets of the table; overall it is equal to `p_value`.
    """

    name: str
    num_problems: int
    before: float
    before_error: float | None
    after: float
    after_error: float | None
    interval: tuple[float, float] | None
    num_won: int
    num_lost: int
    p_value: float
    adjusted_p_value: float

    @property
    def difference(self) -> float:
        """The accuracy of the second model minus that of the first, in [-1, 1]."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """A model compared with the first one.

    Attributes:
        before: The path of the first model.
        after: The path of the other model.
        datasets: A row for each dataset.
        overall: The row over all datasets.
    """

    before: str
    after: str
    datasets: Sequence[Row]
    overall: Row


def compare(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """Compare every other evaluation with the first one, paired by problem.

    Args:
        evaluations: Finished evaluations, the baseline first.

    Returns:
        A comparison for each evaluation but the first.

    Raises:
        ConfigError: There are fewer than two evaluations, or they differ in their problems or settings, so that a
            difference could have another cause than the models.
    """
    base, *others = evaluations
    if not others:
        raise ConfigError("there is nothing to compare with; give two or more evaluations")
    for other in others:
        _check_comparable(base, other)
    return [_compare_two(base, other) for other in others]


def _compare_two(base: Evaluation, other: Evaluation) -> Comparison:
    groups = list(zip(base.answers_by_dataset(), other.answers_by_dataset(), strict=True))
    rows = [
        _row(_name(base.summary, position), before, after, before_numbers, after_numbers)
        for position, ((before, after), before_numbers, after_numbers) in enumerate(
            zip(groups, base.summary["datasets"], other.summary["datasets"], strict=True)
        )
    ]
    adjusted = adjusted_p_values([row.p_value for row in rows])
    rows = [replace(row, adjusted_p_value=p) for row, p in zip(rows, adjusted, strict=True)]
    overall = _row("overall", base.answers, other.answers, base.summary["overall"], other.summary["overall"])
    return Comparison(base.model, other.model, rows, overall)


def _row(
    name: str,
    before: Sequence[Answer],
    after: Sequence[Answer],
    before_numbers: dict[str, Any],
    after_numbers: dict[str, Any],
) -> Row:
    first, second = _accuracy_by_question(before), _accuracy_by_question(after)
    # A question without an answer of one model, because its endpoint refused the request, compares nothing.
    differences = [second[question] - first[question] for question in first if question in second]
    if not differences:
        raise ConfigError(
            f"the models can't be compared on dataset {name!r} because none of its questions was answered by both "
            "(their endpoints refused the requests); leave this dataset out of both evaluations"
        )
    num_won, num_lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    p_value = sign_test(num_won, num_lost)
    return Row(
        name,
        before_numbers["num_problems"],
        before_numbers["strict_accuracy"],
        before_numbers["strict_accuracy_error"],
        after_numbers["strict_accuracy"],
        after_numbers["strict_accuracy_error"],
        bootstrap_interval(differences),
        num_won,
        num_lost,
        p_value,
        p_value,
    )


def _accuracy_by_question(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the share of right answers to each question. As in the standard errors, equal questions are one."""
    right: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if answer.refused:
            continue
        right[answer.fingerprint].append(float(answer.is_right))
    return {question: mean(values) for question, values in right.items()}


def _name(summary: dict[str, Any], position: int) -> str:
    """Return the dataset's name, with its category or position if the name is not unique."""
    datasets = summary["datasets"]
    name, category = datasets[position]["dataset"], datasets[position]["category"]
    same = [dataset for dataset in datasets if dataset["dataset"] == name]
    if len(same) == 1:
        return name
    if sum(dataset["category"] == category for dataset in same) == 1:
        return f"{category}/{name}"
    return f"{name} ({position + 1})"


def _check_comparable(base: Evaluation, other: Evaluation) -> None:
    base_config, other_config = base.summary["config"], other.summary["config"]
    changed = sorted(
        f"{key} ({base_config.get(key)!r:.80} and {other_config.get(key)!r:.80})"
        for key in (base_config.keys() | other_config.keys()) - _MAY_DIFFER
        if base_config.get(key) != other_config.get(key)
    )
    if not changed and len(base.summary["datasets"]) != len(other.summary["datasets"]):
        changed = ["the number of datasets"]
    if changed:
        raise ConfigError(
            f"the evaluations in {base.folder} and {other.folder} can't be compared because they differ in "
            f"{', '.join(changed)}; evaluate both models with the same file"
        )
    for before, after in zip(base.summary["datasets"], other.summary["datasets"], strict=True):
        if before["problems_digest"] != after["problems_digest"]:
            raise ConfigError(
                f"the evaluations in {base.folder} and {other.folder} can't be compared because they asked different "
                f"problems of dataset {before['dataset']!r} under the same seed, so Reasoning Gym or its parameters "
                "changed; evaluate both models again"
            )
