"""A dataset's difficulty levels as Reasoning Gym parameters, easiest first.

Built on the attributes that Reasoning Gym's curricula define (a word length, a number of people, each with its own
levels), not on its CurriculumExperiment, which ignores seeds, can't be saved, and fails for a dozen datasets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from reasoning_gym.coaching.attributes import AttributeDefinition, RangeAttributeDefinition
from reasoning_gym.factory import CURRICULA

from rgtrain.curriculum.probe import make_problems
from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import DatasetSpec


@dataclass(frozen=True)
class Ladder:
    """The parameters of each level of a dataset: no two levels have the same, and all make problems."""

    dataset: str
    levels: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.levels)


def build_ladder(spec: DatasetSpec, *, start: Mapping[str, int] | None = None, num_levels: int | None = None) -> Ladder:
    """The levels of `spec`'s dataset from its attributes' `start` levels (all attributes from 0 unless given).

    With `num_levels` only the first so many. A step up raises every named attribute that isn't at its top; other
    parameters stay as in `spec`. A range, such as of word lengths, is held at its level; where the dataset makes no
    problems so, it reaches down to the level below; where it makes none then either (or takes seconds for one), the
    level is left out.
    Raises ConfigError for a dataset without a curriculum, unknown attributes, start levels there are not, parameters
    set twice, or where fewer than two levels are left.
    """
    attributes = _attributes(spec.name)
    start = dict.fromkeys(attributes, 0) if start is None else dict(start)
    for name, level in start.items():
        _check_start(spec, attributes, name, level)
    num_steps = max((len(attributes[name].levels) - level for name, level in start.items()), default=0)
    ranged = [[_params(attributes, start, step, wide=wide) for step in range(num_steps)] for wide in (False, True)]
    levels = _usable(spec, *ranged)[:num_levels]
    if len(levels) < 2:
        raise ConfigError(f"dataset {spec.name!r} has {len(levels)} usable levels from {start}: a curriculum needs two")
    return Ladder(spec.name, tuple(levels))


def _usable(spec: DatasetSpec, narrow: list[dict[str, Any]], wide: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each step's parameters: those of `narrow` where they make problems, else those of `wide` if they do."""
    chosen: list[dict[str, Any] | None] = [None] * len(narrow)
    for candidates in (narrow, wide):
        missing = [step for step, params in enumerate(chosen) if params is None]
        specs = [replace(spec, params={**spec.params, **candidates[step]}) for step in missing]
        for step, tried, works in zip(missing, specs, make_problems(specs), strict=True):
            if works:
                chosen[step] = dict(tried.params)
    distinct: list[dict[str, Any]] = []
    for params in chosen:
        if params is not None and params not in distinct:
            distinct.append(params)
    return distinct


def _attributes(dataset: str) -> Mapping[str, AttributeDefinition]:
    if dataset not in CURRICULA:
        raise ConfigError(f"dataset {dataset!r} has no curriculum in Reasoning Gym: leave it out of data.curriculum")
    return CURRICULA[dataset]().attributes


def _check_start(spec: DatasetSpec, attributes: Mapping[str, AttributeDefinition], name: str, level: Any) -> None:
    if name not in attributes:
        raise ConfigError(f"the curriculum of {spec.name!r} has no attribute {name!r}; {choose_from(name, attributes)}")
    last = len(attributes[name].levels) - 1
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= last:
        raise ConfigError(f"attribute {name!r} of {spec.name!r} starts at {level!r}: its levels go from 0 to {last}")
    if twice := set(_fields(attributes[name])) & set(spec.params):
        raise ConfigError(
            f"data.mixture sets {sorted(twice)} of {spec.name!r}, and so does its curriculum by {name!r}: "
            "leave them out of the mixture, or the attribute out of the curriculum's start"
        )


def _fields(attribute: AttributeDefinition) -> list[str]:
    if isinstance(attribute, RangeAttributeDefinition):
        return [attribute.lower_field_name, attribute.upper_field_name]
    return [attribute.field_name]


def _params(
    attributes: Mapping[str, AttributeDefinition], start: Mapping[str, int], step: int, *, wide: bool
) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, first in start.items():
        attribute = attributes[name]
        if not isinstance(attribute, RangeAttributeDefinition):
            params[attribute.field_name] = attribute.levels[min(first + step, len(attribute.levels) - 1)]
            continue
        low, high = _range(attribute, first + step)
        params[attribute.lower_field_name] = _range(attribute, max(first, first + step - 1))[0] if wide else low
        params[attribute.upper_field_name] = high
    return params


def _range(attribute: RangeAttributeDefinition, level: int) -> tuple[Any, Any]:
    """From a level's value to itself, or to the next level's where the dataset needs an interval."""
    last = len(attribute.levels) - 1
    level = min(level, last)
    value = attribute.levels[level]
    if isinstance(value, list | tuple):
        return min(value), max(value)
    if not attribute.ensure_interval:
        return value, value
    high = min(level + 1, last)
    return attribute.levels[max(0, high - 1)], attribute.levels[high]
