"""Build the difficulty levels of a dataset, as Reasoning Gym parameters from the easiest level up.

A level sets attributes that Reasoning Gym's curricula define, such as a word length or a number of people. Reasoning
Gym's own CurriculumExperiment is not used because it ignores seeds, cannot be saved, and fails for a dozen datasets.
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
    """The parameters of each level of a dataset. All levels differ, and each one makes problems."""

    dataset: str
    levels: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.levels)


def build_ladder(
    spec: DatasetSpec,
    *,
    start: Mapping[str, int] | None = None,
    num_levels: int | None = None,
    ranges: str = "level",
) -> Ladder:
    """Build the levels of a dataset.

    Each level raises every attribute in `start` by one until it is at its maximum. Other parameters stay as in `spec`.
    A range attribute, such as a range of word lengths, covers the values of its level only. If the dataset makes no
    problems with such a range, the range also covers the level below. A level is skipped if it still makes none, or
    takes seconds for one.

    Args:
        spec: The dataset and its other parameters.
        start: First level by attribute; by default all attributes start at 0.
        num_levels: Maximum number of levels.
        ranges: "level" for ranges as above, or "widening" for ranges that begin at the attribute's lowest value at
            every level, as in the published curricula (arXiv 2505.24760).

    Returns:
        At least two levels.

    Raises:
        ConfigError: The dataset has no curriculum, `start` has an unknown attribute or level, a parameter is set twice,
            `ranges` is unknown, or fewer than two levels are left.
    """
    if ranges not in ("level", "widening"):
        raise ConfigError(f"data.curriculum of {spec.name!r} has ranges {ranges!r}; write level or widening")
    attributes = _attributes(spec)
    start = dict.fromkeys(attributes, 0) if start is None else dict(start)
    for name, level in start.items():
        _check_start(spec, attributes, name, level)
    num_steps = max((len(attributes[name].levels) - level for name, level in start.items()), default=0)
    # The number of levels below the current one that a range covers too, in the order of trying.
    depths = [0, 1] if ranges == "level" else [None]
    tries = [[_params(attributes, start, step, depth=depth) for step in range(num_steps)] for depth in depths]
    levels = _usable(spec, tries)[:num_levels]
    if len(levels) < 2:
        raise ConfigError(
            f"dataset {spec.name!r} has {len(levels)} usable levels from {start}, but a curriculum needs two; "
            "lower start or raise num_levels"
        )
    return Ladder(spec.name, tuple(levels))


def _usable(spec: DatasetSpec, tries: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the distinct parameters that make problems; each step uses the first of its tries that makes any."""
    chosen: list[dict[str, Any] | None] = [None] * len(tries[0])
    for candidates in tries:
        missing = [step for step, params in enumerate(chosen) if params is None]
        specs = [replace(spec, params={**spec.params, **candidates[step]}) for step in missing]
        for step, tried, makes_any in zip(missing, specs, make_problems(specs), strict=True):
            if makes_any:
                chosen[step] = dict(tried.params)
    distinct: list[dict[str, Any]] = []
    for params in chosen:
        if params is not None and params not in distinct:
            distinct.append(params)
    return distinct


def _attributes(spec: DatasetSpec) -> Mapping[str, AttributeDefinition]:
    if spec.generator not in CURRICULA:
        raise ConfigError(f"dataset {spec.name!r} has no curriculum in Reasoning Gym; remove it from data.curriculum")
    return CURRICULA[spec.generator]().attributes


def _check_start(spec: DatasetSpec, attributes: Mapping[str, AttributeDefinition], name: str, level: Any) -> None:
    if name not in attributes:
        raise ConfigError(f"the curriculum of {spec.name!r} has no attribute {name!r}; {choose_from(name, attributes)}")
    last = len(attributes[name].levels) - 1
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= last:
        raise ConfigError(f"attribute {name!r} of {spec.name!r} starts at {level!r}; give a level from 0 to {last}")
    if twice := set(_fields(attributes[name])) & set(spec.params):
        raise ConfigError(
            f"data.mixture and the curriculum attribute {name!r} of {spec.name!r} both set {sorted(twice)}; "
            "remove the parameters from the mixture or the attribute from the curriculum's start"
        )


def _fields(attribute: AttributeDefinition) -> list[str]:
    if isinstance(attribute, RangeAttributeDefinition):
        return [attribute.lower_field_name, attribute.upper_field_name]
    return [attribute.field_name]


def _params(
    attributes: Mapping[str, AttributeDefinition], start: Mapping[str, int], step: int, *, depth: int | None
) -> dict[str, Any]:
    """Return the parameters at `step`; ranges cover `depth` levels below, or with None all from the lowest value up."""
    params: dict[str, Any] = {}
    for name, first in start.items():
        attribute = attributes[name]
        if not isinstance(attribute, RangeAttributeDefinition):
            params[attribute.field_name] = attribute.levels[min(first + step, len(attribute.levels) - 1)]
            continue
        lowest = 0 if depth is None else max(first, first + step - depth)
        params[attribute.lower_field_name] = _range(attribute, lowest)[0]
        params[attribute.upper_field_name] = _range(attribute, first + step)[1]
    return params


def _range(attribute: RangeAttributeDefinition, level: int) -> tuple[Any, Any]:
    """Return the lowest and highest value of a level; an attribute that needs an interval includes the next level."""
    last = len(attribute.levels) - 1
    level = min(level, last)
    value = attribute.levels[level]
    if isinstance(value, list | tuple):
        return min(value), max(value)
    if not attribute.ensure_interval:
        return value, value
    high = min(level + 1, last)
    return attribute.levels[max(0, high - 1)], attribute.levels[high]
