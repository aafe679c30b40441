"""Weighted mixtures of Reasoning Gym datasets, made lazily and reproducibly.

Seeds. In 102 of 105 datasets the problem of (seed s, index i) depends on s + i alone, so neighbouring seeds share
nearly all problems. Every mixture here therefore gets a range of seeds of its own (see `Split`), and training
problems are compared with held-out ones by content on top of that (see heldout.py).
"""

import decimal
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.entries import dump_entry, fingerprint
from rgtrain.problems.isolated_problems import RUN_PROGRAMS, make_entry

MAX_SEED = 999
MAX_SPLIT_SIZE = 1_000_000
# Reasoning Gym's own seeds, small numbers by custom and used as such in evaluation files, stay below this.
_FIRST_SPLIT_SEED = 100_000_000
# Set by the mixture itself, so nobody else may.
_RESERVED_PARAMS = ("seed", "size")
# acre lays out all its items when created (a million take 6 minutes and 10 GB); word_ladder refuses more than this.
_PAGE_SIZES = {"acre": 1_000, "word_ladder": 20_000}
_MAX_PAGES = 4


class Split(IntEnum):
    """Which range of Reasoning Gym seeds a mixture draws from; ranges of different splits and seeds never meet."""

    TRAIN = 0
    VALIDATION = 1
    EXAMPLES = 2

    def base_seed(self, seed: int) -> int:
        """The first Reasoning Gym seed of this split for the user's `seed` in [0, MAX_SEED]; below 2**32."""
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed {seed!r} is out of range: give a whole number from 0 to {MAX_SEED}")
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
    # Of its dataset's curriculum, if it has one.
    level: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two problems exactly if dataset and question are."""
        return fingerprint(self.dataset, self.question)


class ProblemSource:
    """Problems of one dataset with fixed parameters and base seed, by index.

    With PYTHONHASHSEED fixed they are the same in every process and in any order of access, but for 3 in 1,000 of
    codeio, whose programs read the clock, the system's entropy or memory addresses.
    """

    def __init__(self, spec: DatasetSpec, *, seed: int, size: int = MAX_SPLIT_SIZE):
        self.spec = spec
        self.seed = seed
        self._page_size = min(size, _PAGE_SIZES.get(spec.name, size))
        self._pages: dict[int, Any] = {}
        self._page(0)

    def __getitem__(self, index: int) -> Problem:
        if self.spec.name not in RUN_PROGRAMS:
            return self.make_here(index)
        # The child has the dataset's data too: hold it only once.
        self._pages.clear()
        entry = make_entry(self.spec.name, params=self.spec.params, seed=self.seed, size=self._page_size, index=index)
        return Problem(self.spec.name, self.seed, index, entry["question"], entry)

    def make_here(self, index: int) -> Problem:
        """Make problem `index` in this process, also if its dataset runs programs."""
        with _fixed_global_state(self.seed + index):
            dataset = self._page(index // self._page_size)
            if hasattr(dataset, "_jsonl_data"):
                type(dataset)._jsonl_data = dataset._jsonl_data
            entry = dict(dataset[index % self._page_size])
        metadata = dict(entry.get("metadata") or {})
        metadata["source_dataset"] = self.spec.name
        # Six scorers read the dataset's parameters: they have to travel with the entry.
        metadata["source_params"] = dict(self.spec.params)
        entry["metadata"] = metadata
        return Problem(self.spec.name, self.seed, index, entry["question"], entry)

    def _page(self, number: int) -> Any:
        if number not in self._pages:
            if len(self._pages) == _MAX_PAGES:
                del self._pages[next(iter(self._pages))]
            seed = self.seed + number * self._page_size
            self._pages[number] = create_dataset(self.spec, seed=seed, size=self._page_size)
        return self._pages[number]


@dataclass(frozen=True)
class Choice:
    """Where a problem is to come from: a dataset with parameters, which may be those of a level."""

    spec: DatasetSpec
    level: int | None = None


class Mixture:
    """`size` problems of several datasets; `mixture[i]` depends on specs, seed, split and i alone.

    `choose` says where problem i comes from; without it datasets are drawn by weight.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        seed: int,
        size: int,
        split: Split,
        choose: Callable[[int], Choice] | None = None,
    ):
        if not 0 < size <= MAX_SPLIT_SIZE:
            raise ConfigError(f"a mixture of {size} problems: give a size from 1 to {MAX_SPLIT_SIZE}")
        self.specs = list(specs)
        self.seed = seed
        self.size = size
        self._base_seed = split.base_seed(seed)
        self.choose = choose or self._by_weight
        self._sources: dict[tuple[str, int | None], ProblemSource] = {}
        for spec in self.specs:
            self._source(Choice(spec))

    def _by_weight(self, index: int) -> Choice:
        chooser = random.Random(f"{self.seed}/{index}")
        return Choice(chooser.choices(self.specs, weights=[spec.weight for spec in self.specs])[0])

    def _source(self, choice: Choice) -> ProblemSource:
        key = choice.spec.name, choice.level
        if key not in self._sources:
            self._sources[key] = ProblemSource(choice.spec, seed=self._base_seed)
        return self._sources[key]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Problem]:
        return map(self.draw, range(self.size))

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.draw(index)

    def draw(self, index: int, *, attempt: int = 0, choice: Choice | None = None) -> Problem:
        """Problem `index`; a higher `attempt` gives another problem of the same `choice` in its place."""
        choice = choice or self.choose(index)
        # Later attempts use indices past this mixture's own, so no two (index, attempt) pairs meet...
        position = index + attempt * self.size
        if position >= MAX_SPLIT_SIZE:
            # ... as long as there are any: behind them lie the seeds of another split.
            position = random.Random(f"{self.seed}/{index}/{attempt}").randrange(MAX_SPLIT_SIZE)
        problem = self._source(choice)[position]
        return problem if choice.level is None else replace(problem, level=choice.level)


def build_mixture(
    specs: Sequence[DatasetSpec],
    *,
    seed: int,
    size: int,
    split: Split = Split.TRAIN,
    choose: Callable[[int], Choice] | None = None,
) -> Mixture:
    """A mixture of `size` problems. Raises ConfigError on anything `check_specs` finds wrong."""
    check_specs(specs)
    return Mixture([spec for spec in specs if spec.weight > 0], seed=seed, size=size, split=split, choose=choose)


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
        options = {} if options is None else options
        if not isinstance(options, Mapping) or set(options) - {"weight", "config"}:
            raise ConfigError(f"dataset {name!r} of the mixture has {options!r}; it takes only 'weight' and 'config'")
        params = {} if options.get("config") is None else options["config"]
        if not isinstance(params, Mapping):
            raise ConfigError(f"dataset {name!r} has config {params!r}; write a mapping: config: {{parameter: value}}")
        specs.append(DatasetSpec(name, options.get("weight", 1.0), dict(params)))
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
    if spec.name == "composite":
        raise ConfigError("dataset 'composite' is a mixture itself; name its datasets in this one instead")
    if isinstance(spec.weight, bool) or not isinstance(spec.weight, int | float) or not 0 <= spec.weight < float("inf"):
        raise ConfigError(f"dataset {spec.name!r} has weight {spec.weight!r}; a weight is a number from 0 up")
    allowed = {f.name for f in fields(DATASETS[spec.name][1])} - set(_RESERVED_PARAMS)
    for param in spec.params:
        if param in _RESERVED_PARAMS:
            raise ConfigError(f"dataset {spec.name!r}: {param!r} is set by the mixture itself; leave it out")
        if param not in allowed:
            raise ConfigError(f"dataset {spec.name!r} has no parameter {param!r}; {choose_from(param, allowed)}")
    try:
        dump_entry(dict(spec.params))
    except TypeError as error:
        raise ConfigError(f"dataset {spec.name!r}: its parameters travel with its problems, but {error}") from error
    create_dataset(spec, seed=0, size=1)


def create_dataset(spec: DatasetSpec, *, seed: int, size: int) -> Any:
    """Reasoning Gym's dataset for `spec`; its own refusal of a parameter's value becomes a ConfigError."""
    params = _with_tuples(spec)
    with _global_state_lock:
        try:
            dataset = reasoning_gym.create_dataset(spec.name, seed=seed, size=size, **params)
        except (AssertionError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigError(f"dataset {spec.name!r} refuses {dict(spec.params)}: {reason}") from error
        if hasattr(dataset, "_jsonl_data"):
            # codeio keeps its programs on the class, where its next instance may replace them by others.
            dataset._jsonl_data = type(dataset)._jsonl_data
    return dataset


def _with_tuples(spec: DatasetSpec) -> dict[str, Any]:
    # YAML has no tuples: a list stands for one where the dataset's own default is a tuple.
    config = DATASETS[spec.name][1]()
    return {
        key: tuple(value) if isinstance(value, list) and isinstance(getattr(config, key), tuple) else value
        for key, value in spec.params.items()
    }


_global_state_lock = threading.RLock()


@contextmanager
def _fixed_global_state(seed: int) -> Iterator[None]:
    """The state of the process that items are made from, set by `seed` alone and put back afterwards."""
    with _global_state_lock:
        python_state, numpy_state = random.getstate(), numpy.random.get_state()
        # list_functions and codeio draw from the global generators, and codeio's programs set the decimal precision.
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            with decimal.localcontext(decimal.Context()):
                yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)
