"""Accuracy by level of difficulty, for datasets that report the difficulty of their problems."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rgtrain.evaluation.judged_answers import Answer
from rgtrain.stats import mean

_MAX_LEVELS = 8


@dataclass(frozen=True)
class Level:
    """The problems whose difficulty lies in one range.

    Attributes:
        label: The range.
        num_problems: The number of problems.
        accuracy: The share of right answers.
    """

    label: str
    num_problems: int
    accuracy: float


def accuracy_by_level(answers: Sequence[Answer]) -> dict[str, list[Level]]:
    """Return the levels, from low to high, of each difficulty quantity (see `difficulty`) that varies."""
    values: dict[str, dict[float, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        for name, value in answer.difficulty.items():
            values[name][value].append(answer)
    return {name: _levels(by_value) for name, by_value in values.items() if len(by_value) > 1}


def _levels(by_value: dict[float, list[Answer]]) -> list[Level]:
    """Return a level for each value, or ranges with about equally many answers if there are many values."""
    num_answers = sum(map(len, by_value.values()))
    groups: list[tuple[list[float], list[Answer]]] = []
    for value in sorted(by_value):
        full = len(by_value) <= _MAX_LEVELS or (groups and len(groups[-1][1]) >= num_answers / _MAX_LEVELS)
        if full or not groups:
            groups.append(([], []))
        groups[-1][0].append(value)
        groups[-1][1].extend(by_value[value])
    return [
        Level(_label(values), len({a.problem for a in answers}), mean(a.is_right for a in answers))
        for values, answers in groups
    ]


def _label(values: Sequence[float]) -> str:
    return f"{values[0]:.4g}" if len(values) == 1 else f"{values[0]:.4g} to {values[-1]:.4g}"
