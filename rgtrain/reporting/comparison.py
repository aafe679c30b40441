"""Compare models on the same problems: differences to the first model, their confidence intervals and p-values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.declared_keys import Scope
from rgtrain.evaluation.evaluation_config import KEYS
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.measures import at_k_by_question, right_by_question, values_of_k
from rgtrain.reporting.evaluation_reader import Evaluation
from rgtrain.reporting.model_names import distinct_names, is_trained_from
from rgtrain.stats import PairedSums, adjusted_p_values, difference_interval, mean, mean_interval, sign_flip_test

# The same answers in another order may give pass@k another last digit.
_EQUAL = 1e-9
# Settings that may differ between evaluations of different models.
_MAY_DIFFER = {key.field.name for key in KEYS.values() if key.scope != Scope.COMPARISON}


@dataclass(frozen=True)
class Row:
    """One figure of two models, for example their accuracy on one dataset.

    All figures are over the questions that both models answered.

    Attributes:
        name: The name of the dataset or category, or "overall".
        num_problems: The number of problems.
        num_questions: The number of distinct questions among them.
        before: The first model's mean, of which every answer is an equal part.
        before_interval: Its 95 % confidence interval.
        after: The second model's mean.
        after_interval: Its 95 % confidence interval.
        interval: The 95 % confidence interval of `difference` (see difference_interval).
        num_won: Questions that the second model solves more often than the first.
        num_lost: Questions that the second model solves less often than the first.
        p_value: The p-value of `difference` (see sign_flip_test).
        adjusted_p_value: The p-value adjusted for all rows of its kind; overall it is equal to `p_value`.
    """

    name: str
    num_problems: int
    num_questions: int
    before: float
    before_interval: tuple[float, float]
    after: float
    after_interval: tuple[float, float]
    interval: tuple[float, float]
    num_won: int
    num_lost: int
    p_value: float
    adjusted_p_value: float

    @property
    def difference(self) -> float:
        """The second model's mean minus that of the first, in [-1, 1]."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """A model compared with the first one.

    Attributes:
        before: The path of the first model.
        after: The path of the other model.
        labels: The names of the two models in tables: "before" and "after" if the other model was trained from the
            first, otherwise short names.
        datasets: The accuracy on each dataset.
        categories: The accuracy on each category; empty for a single category.
        overall: The accuracy over all datasets.
        at_k: pass@k and majority@k over all datasets, for k above 1.
        num_unpaired: The number of questions that only one of the models answered. They count in no row.
    """

    before: str
    after: str
    labels: tuple[str, str]
    datasets: Sequence[Row]
    categories: Sequence[Row]
    overall: Row
    at_k: Sequence[Row]
    num_unpaired: int


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
    datasets = [
        _accuracies(_name(base.summary, position), before, after) for position, (before, after) in enumerate(groups)
    ]
    categories = []
    if len(base.summary["categories"]) > 1:
        for category in (numbers["category"] for numbers in base.summary["categories"]):
            before, after = ([answer for answer in one.answers if answer.category == category] for one in (base, other))
            categories.append(_accuracies(f"{category} (all)", before, after))
    at_k = [
        _row(f"{name}@{k}", *(at_k_by_question(one.answers, name, k=k) for one in (base, other)))
        for name in ("pass", "majority")
        for k in values_of_k(base.answers)
        if 1 < k <= max(values_of_k(other.answers))
    ]
    answered = [right_by_question(one.answers).keys() for one in (base, other)]
    return Comparison(
        base.model,
        other.model,
        _labels(base, other),
        _adjusted(datasets),
        _adjusted(categories),
        _accuracies("overall", base.answers, other.answers),
        _adjusted([row for row in at_k if row]),
        len(answered[0] ^ answered[1]),
    )


def _labels(base: Evaluation, other: Evaluation) -> tuple[str, str]:
    if is_trained_from(other.summary, base.summary):
        return "before", "after"
    first, second = distinct_names([base.model, other.model])
    return first, second


def outcome(before: Sequence[Answer], after: Sequence[Answer]) -> str:
    """Return how two models did on one question.

    Args:
        before: The first model's answers to the question.
        after: The second model's answers to it.

    Returns:
        `won` or `lost` if the second model is right more or less often than the first, as Row counts them. If both are
        right equally often: `right` if always, `wrong` if never, and `partly` otherwise or if both have partial credit.
        `unpaired` if the requests of a model were refused.
    """
    values = [[answer for answer in answers if not answer.refused] for answers in (before, after)]
    if not all(values):
        return "unpaired"
    first, second = (mean(answer.is_right for answer in answers) for answers in values)
    if abs(second - first) > _EQUAL:
        return "won" if second > first else "lost"
    if first == 1:
        return "right"
    has_credit = all(any(answer.score > 0 for answer in answers) for answers in values)
    return "partly" if has_credit else "wrong"


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    p_values = adjusted_p_values([row.p_value for row in rows])
    return [replace(row, adjusted_p_value=p_value) for row, p_value in zip(rows, p_values, strict=True)]


def _accuracies(name: str, before: Sequence[Answer], after: Sequence[Answer]) -> Row:
    row = _row(name, right_by_question(before), right_by_question(after))
    if row is None:
        raise ConfigError(
            f"the models can't be compared on dataset {name!r} because none of its questions was answered by both "
            "(their endpoints refused the requests); leave this dataset out of both evaluations"
        )
    problems = {answer.problem for answer in before if not answer.refused}
    problems &= {answer.problem for answer in after if not answer.refused}
    return replace(row, num_problems=len(problems))


def _row(name: str, before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> Row | None:
    """Compare values by question. Return None if no question has values of both models."""
    questions = [question for question in before if question in after]
    if not questions:
        return None
    sums = [
        PairedSums(math.fsum(before[one]), len(before[one]), math.fsum(after[one]), len(after[one]))
        for one in questions
    ]
    changes = [pair.after / pair.num_after - pair.before / pair.num_before for pair in sums]
    means, intervals = [], []
    for values in (before, after):
        flat = [value for question in questions for value in values[question]]
        clusters = [question for question in questions for _ in values[question]]
        means.append(mean(flat))
        intervals.append(mean_interval(flat, clusters=clusters))
    p_value = sign_flip_test(sums)
    return Row(
        name=name,
        num_problems=min(sum(len(values[question]) for question in questions) for values in (before, after)),
        num_questions=len(questions),
        before=means[0],
        before_interval=intervals[0],
        after=means[1],
        after_interval=intervals[1],
        interval=difference_interval(sums),
        num_won=sum(change > _EQUAL for change in changes),
        num_lost=sum(change < -_EQUAL for change in changes),
        p_value=p_value,
        adjusted_p_value=p_value,
    )


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
