"""Weighted mixtures of Reasoning Gym datasets, made lazily and reproducibly.

Seeds. In 102 of 105 datasets the problem of (seed s, index i) depends on s + i alone, so neighbouring seeds share
nearly all problems. Every mixture here therefore gets a range of seeds of its own (see `Split`), and training
problems are compared with held-out ones by content on top of that (see heldout.py).
"""

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cached_property
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.entries import fingerprint

MAX_SEED = 999
MAX_SPLIT_SIZE = 1_000_000
# Reasoning Gym's own seeds, small numbers by custom and used as such in evaluation files, stay below this.
_FIRST_SPLIT_SEED = 100_000_000
# Set by the mixture itself, so nobody else may.
_RESERVED_PARAMS = ("seed", "size")


class Split(IntEnum):
    """Which range of Reasoning Gym seeds a mixture draws from; ranges of different splits and seeds never meet."""

    TRAIN = 0
    VALIDATION = 1
    EXAMPLES = 2

    def base_seed(self, seed: int) -> int:
        """The first Reasoning Gym seed of this split for the user's `seed` in [0, MAX_SEED]; below 2**32."""
        if not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed {seed} is out of range: give a whole number from 0 to {MAX_SEED}")
        return _FIRST_SPLIT_SEED + (seed * len(Split) + self) * MAX_SPLIT_SIZE


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of a mixture: its registered name, relative weight, and Reasoning Gym parameters."""

    name: str
    weight: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One problem. `entry` is all that scoring needs: it names its dataset and parameters in its metadata."""

    dataset: str
    seed: int
    index: int
    question: str
    entry: Mapping[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two problems exactly if dataset and question are."""
        return fingerprint(self.dataset, self.question)


class ProblemSource:
    """Problems of one dataset with fixed parameters and base seed, by index, the same in every process."""

    def __init__(self, spec: DatasetSpec, *, seed: int, size: int = MAX_SPLIT_SIZE):
        self.spec = spec
        self.seed = seed
        self._dataset = create_dataset(spec, seed=seed, size=size)

    def __getitem__(self, index: int) -> Problem:
        with _fixed_global_random(self.seed + index):
            entry = dict(self._dataset[index])
        metadata = dict(entry.get("metadata") or {})
        metadata["source_dataset"] = self.spec.name
        # Six scorers read the dataset's parameters: they have to travel with the entry.
        metadata["source_params"] = dict(self.spec.params)
        entry["metadata"] = metadata
        return Problem(self.spec.name, self.seed, index, entry["question"], entry)


class Mixture(Sequence[Problem]):
    """`size` problems of several datasets, drawn by weight; `mixture[i]` depends on specs, seed, split and i alone."""

    def __init__(self, specs: Sequence[DatasetSpec], *, seed: int, size: int, split: Split):
        if not 0 < size <= MAX_SPLIT_SIZE:
            raise ConfigError(f"a mixture of {size} problems: give a size from 1 to {MAX_SPLIT_SIZE}")
        self.specs = list(specs)
        self.seed = seed
        self.size = size
        base_seed = split.base_seed(seed)
        self._sources = [ProblemSource(spec, seed=base_seed) for spec in self.specs]
        self._weights = [spec.weight for spec in self.specs]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.draw(index)

    def draw(self, index: int, *, attempt: int = 0) -> Problem:
        """Problem `index`; a higher `attempt` gives another problem of the same dataset in its place."""
        chooser = random.Random(f"{self.seed}/{index}")
        source = chooser.choices(self._sources, weights=self._weights)[0]
        # Later attempts use indices past this mixture's own, so no two (index, attempt) pairs meet.
        return source[index + attempt * self.size]


def build_mixture(specs: Sequence[DatasetSpec], *, seed: int, size: int, split: Split = Split.TRAIN) -> Mixture:
    """A mixture of `size` problems. Raises ConfigError on anything `check_specs` finds wrong."""
    check_specs(specs)
    return Mixture([spec for spec in specs if spec.weight > 0], seed=seed, size=size, split=split)


def parse_mixture(raw: Mapping[str, Any]) -> list[DatasetSpec]:
    """Specs from the configuration's form `{dataset: {weight: 1, config: {...}}}`, checked.

    Raises ConfigError for another form, unknown datasets or parameters, and unusable weights.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"the mixture is a {type(raw).__name__}; write it as a mapping: {{chain_sum: {{weight: 1, config: {{}}}}}}"
        )
    specs = []
    for name, options in raw.items():
        options = options or {}
        if not isinstance(options, Mapping) or set(options) - {"weight", "config"}:
            raise ConfigError(f"dataset {name!r} of the mixture has {options!r}; it takes only 'weight' and 'config'")
        specs.append(DatasetSpec(name, options.get("weight", 1.0), dict(options.get("config") or {})))
    check_specs(specs)
    return specs


def check_specs(specs: Sequence[DatasetSpec]) -> None:
    """Raise ConfigError unless every dataset exists with these parameters and some weight is positive."""
    if not specs:
        raise ConfigError("the mixture is empty: name at least one dataset, such as {chain_sum: {weight: 1}}")
    for spec in specs:
        check_spec(spec)
    if sum(spec.weight for spec in specs) <= 0:
        raise ConfigError(
            f"the weights of {', '.join(spec.name for spec in specs)} sum to 0: give one a weight above 0"
        )


def check_spec(spec: DatasetSpec) -> None:
    """Raise ConfigError unless the dataset exists and takes these parameters with these values."""
    if spec.name not in DATASETS:
        raise ConfigError(f"unknown dataset {spec.name!r}; {choose_from(spec.name, DATASETS)}")
    if isinstance(spec.weight, bool) or not isinstance(spec.weight, int | float) or not 0 <= spec.weight < float("inf"):
        raise ConfigError(f"dataset {spec.name!r} has weight {spec.weight!r}; a weight is a number from 0 up")
    allowed = {f.name for f in fields(DATASETS[spec.name][1])} - set(_RESERVED_PARAMS)
    for param in spec.params:
        if param in _RESERVED_PARAMS:
            raise ConfigError(f"dataset {spec.name!r}: {param!r} is set by the mixture itself; leave it out")
        if param not in allowed:
            raise ConfigError(f"dataset {spec.name!r} has no parameter {param!r}; {choose_from(param, allowed)}")
    create_dataset(spec, seed=0, size=1)


def create_dataset(spec: DatasetSpec, *, seed: int, size: int) -> Any:
    """Reasoning Gym's dataset for `spec`; its own refusal of a parameter's value becomes a ConfigError."""
    try:
        return reasoning_gym.create_dataset(spec.name, seed=seed, size=size, **_with_tuples(spec))
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"dataset {spec.name!r} refuses {dict(spec.params)}: {error}") from error


def _with_tuples(spec: DatasetSpec) -> dict[str, Any]:
    # YAML has no tuples: a list stands for one where the dataset's own default is a tuple.
    config = DATASETS[spec.name][1]()
    return {
        key: tuple(value) if isinstance(value, list) and isinstance(getattr(config, key), tuple) else value
        for key, value in spec.params.items()
    }


_random_lock = threading.Lock()


class _fixed_global_random:
    """Seeds Python's global generator, which three datasets draw from, and puts its state back afterwards."""

    def __init__(self, seed: int):
        self._seed = seed

    def __enter__(self) -> None:
        _random_lock.acquire()
        self._state = random.getstate()
        random.seed(self._seed)

    def __exit__(self, *exc_info: object) -> None:
        random.setstate(self._state)
        _random_lock.release()
