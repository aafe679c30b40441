"""Weighted mixtures of Reasoning Gym datasets, whose problems are made lazily and reproducibly.

In 102 of 105 datasets, the problem of seed s and index i depends only on s + i, so adjacent seeds share nearly all
problems. Therefore every mixture has a separate range of seeds (see `Split`). In addition, training problems are
compared with held-out ones by content (see heldout.py).
"""

import decimal
import random
import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.entries import DIGEST_DIGITS, dump_entry, fingerprint
from rgtrain.problems.isolated_problems import RUN_PROGRAMS, make_entry
from rgtrain.problems.question_sources import SOURCES, source_of_entry
from rgtrain.problems.sound_datasets import original_of

MAX_SEED = 999
MAX_SPLIT_SIZE = 1_000_000
# Evaluation files use seeds below this, which are small numbers by convention.
_FIRST_SPLIT_SEED = 100_000_000
# The mixture sets these parameters itself.
_RESERVED_PARAMS = ("seed", "size")
# acre prepares all items at once (a million take 6 minutes and 10 GB). word_ladder refuses larger sizes.
_PAGE_SIZES = {"acre": 1_000, "word_ladder": 20_000}
_MAX_PAGES = 4
# Names are part of metrics and of file names.
_NAME = re.compile(r"[A-Za-z0-9_][\w/-]*", re.ASCII)


class Split(IntEnum):
    """The range of Reasoning Gym seeds that a mixture draws from. Ranges of different splits and seeds are disjoint."""

    TRAIN = 0
    VALIDATION = 1
    EXAMPLES = 2

    def base_seed(self, seed: int) -> int:
        """Return the first Reasoning Gym seed of this split.

        Args:
            seed: The user's seed, in [0, MAX_SEED].

        Returns:
            A number below 2**32.

        Raises:
            ConfigError: The seed is out of range.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed {seed!r} is out of range; give a whole number from 0 to {MAX_SEED}")
        return _FIRST_SPLIT_SEED + (seed * len(Split) + self) * MAX_SPLIT_SIZE


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset of a mixture.

    Attributes:
        name: The name in metrics and files.
        weight: The relative weight.
        params: The parameters of the generator.
        generator: The registered Reasoning Gym dataset, or the name of a `QuestionSource`; by default the name.
    """

    name: str
    weight: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)
    generator: str = ""

    def __post_init__(self) -> None:
        if not self.generator:
            object.__setattr__(self, "generator", self.name)


@dataclass(frozen=True)
class Problem:
    """A problem. Its `entry` is sufficient for scoring, because the metadata contain the dataset and its parameters."""

    dataset: str
    seed: int
    index: int
    question: str
    entry: Mapping[str, Any]
    # The level in the curriculum of the dataset, if it has one.
    level: int | None = None
    # The dataset with its parameters, if a mixture or an evaluation file made the problem.
    spec: DatasetSpec | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash that two problems share if and only if they have the same generator and question."""
        return fingerprint(original_of(self.spec.generator if self.spec else self.dataset), self.question)

    @property
    def digest(self) -> str:
        """The first 64 bits of the fingerprint, in hexadecimal, for sets and records of many problems."""
        return self.fingerprint[:DIGEST_DIGITS]


class ProblemSource:
    """Problems of one dataset by index, with fixed parameters and base seed.

    With a fixed PYTHONHASHSEED, the problems are the same in every process and in any order of access. Exceptions are
    0.3 % of codeio's problems, whose programs read the clock, the system's entropy or memory addresses.

    Args:
        spec: The dataset and its parameters.
        seed: The Reasoning Gym seed of problem 0.
        size: Number of problems.
    """

    def __init__(self, spec: DatasetSpec, *, seed: int, size: int = MAX_SPLIT_SIZE):
        self.spec = spec
        self.seed = seed
        self._page_size = min(size, _PAGE_SIZES.get(spec.generator, size))
        self._pages: dict[int, Any] = {}
        self._page(0)

    def __getitem__(self, index: int) -> Problem:
        if self.spec.generator not in RUN_PROGRAMS:
            return self.make_here(index)
        # The child process holds the data of the dataset, so free this copy.
        self._pages.clear()
        entry = make_entry(
            self.spec.generator, params=self.spec.params, seed=self.seed, size=self._page_size, index=index
        )
        return self._problem(index, entry)

    def make_here(self, index: int) -> Problem:
        """Make problem `index` in this process, even if its dataset runs programs."""
        if self.spec.generator in SOURCES:
            return self._problem(index, self._entry_of_source(index))
        with _fixed_global_state(self.seed + index):
            dataset = self._page(index // self._page_size)
            if hasattr(dataset, "_jsonl_data"):
                type(dataset)._jsonl_data = dataset._jsonl_data
            entry = dict(dataset[index % self._page_size])
        metadata = dict(entry.get("metadata") or {})
        metadata["source_dataset"] = self.spec.generator
        # Six scorers read the parameters of the dataset, so the entry must contain them.
        metadata["source_params"] = dict(self.spec.params)
        entry["metadata"] = metadata
        return self._problem(index, entry)

    def _entry_of_source(self, index: int) -> dict[str, Any]:
        source = self._page(0)
        entry = dict(source[index])
        dataset, params = source.scorer()
        scorer = {"source_dataset": dataset, "source_params": dict(params)}
        return entry | {"metadata": {**(entry.get("metadata") or {}), **scorer}}

    def _problem(self, index: int, entry: dict[str, Any]) -> Problem:
        return Problem(self.spec.name, self.seed, index, entry["question"], entry, spec=self.spec)

    @property
    def num_problems(self) -> int | None:
        """The number of distinct problems of a `QuestionSource` that has a limited number of them; otherwise None."""
        return self._page(0).num_problems if self.spec.generator in SOURCES else None

    def _page(self, number: int) -> Any:
        if number not in self._pages:
            if len(self._pages) == _MAX_PAGES:
                del self._pages[next(iter(self._pages))]
            seed = self.seed + number * self._page_size
            self._pages[number] = create_dataset(self.spec, seed=seed, size=self._page_size)
        return self._pages[number]


@dataclass(frozen=True)
class Choice:
    """The dataset to draw a problem from, with its parameters and their level, if any."""

    spec: DatasetSpec
    level: int | None = None


class Mixture:
    """A sequence of problems from several datasets. Problem i depends only on specs, seed, split and i.

    Args:
        specs: The datasets.
        seed: The user's seed.
        size: Number of problems.
        split: Range of Reasoning Gym seeds.
        choose: Returns the dataset of problem i; by default datasets are drawn by weight.
        has_fixed_weights: Whether `choose` draws datasets by their weights in `specs`. Then a dataset with a limited
            number of problems gives each of them once before it repeats one.

    Raises:
        ConfigError: Seed or size is out of range, or a dataset refuses its parameters.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        seed: int,
        size: int,
        split: Split,
        choose: Callable[[int], Choice] | None = None,
        has_fixed_weights: bool = True,
    ):
        if not 0 < size <= MAX_SPLIT_SIZE:
            raise ConfigError(f"a mixture cannot have {size} problems; give a size from 1 to {MAX_SPLIT_SIZE}")
        self.specs = list(specs)
        self.seed = seed
        self.size = size
        self._split = split
        self._base_seed = split.base_seed(seed)
        self.choose = choose or self._by_weight
        self._has_fixed_weights = has_fixed_weights
        # By dataset, the indices of its problems among the first ones, in order, and the number of these.
        self._indices: dict[str, list[int]] = {spec.name: [] for spec in self.specs}
        self._num_indices = 0
        self._sources: dict[tuple[str, int | None], ProblemSource] = {}
        for spec in self.specs:
            self._source(Choice(spec))

    def _by_weight(self, index: int) -> Choice:
        chooser = random.Random(f"{self.seed}/{index}")
        return Choice(chooser.choices(self.specs, weights=[spec.weight for spec in self.specs])[0])

    def _source(self, choice: Choice) -> ProblemSource:
        key = choice.spec.name, choice.level
        if key not in self._sources:
            self._sources[key] = ProblemSource(spec_of_split(choice.spec, self._split), seed=self._base_seed)
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
        """Make problem `index`, or an alternative to it.

        Args:
            index: Position in the mixture.
            attempt: 0 for the problem itself; each higher number gives a different alternative.
            choice: The dataset; by default the one that the mixture chooses for `index`.

        Returns:
            The problem.
        """
        choice = choice or self.choose(index)
        source = self._source(choice)
        # Alternatives use indices beyond the mixture, so no two pairs of index and attempt share a problem.
        position = attempt * self.size
        if source.num_problems is not None and self._has_fixed_weights:
            position += self._num_before(index, dataset=choice.spec.name)
        else:
            position += index
        if position >= MAX_SPLIT_SIZE:
            # Seeds beyond this belong to another split, so draw from the whole range instead.
            position = random.Random(f"{self.seed}/{index}/{attempt}").randrange(MAX_SPLIT_SIZE)
        return self.make(choice, position)

    def make(self, choice: Choice, position: int) -> Problem:
        """Make the problem that `draw` made from `choice` before, whose `Problem.index` is `position`."""
        problem = self._source(choice)[position]
        return problem if choice.level is None else replace(problem, level=choice.level)

    def num_drawn(self) -> dict[str, int]:
        """Return the number of problems of each dataset that has a limited number of them, by its name."""
        counts = Counter(self.choose(index).spec.name for index in range(self.size))
        return {name: counts[name] for name in self.problem_limits()}

    def problem_limits(self) -> dict[str, int]:
        """Return the number of distinct problems of each dataset that has a limited number of them, by its name."""
        limits = {spec.name: self._source(Choice(spec)).num_problems for spec in self.specs}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def _num_before(self, index: int, *, dataset: str) -> int:
        """Return the number of problems of a dataset before `index`, if datasets are drawn by weight."""
        for later in range(self._num_indices, index + 1):
            self._indices[self._by_weight(later).spec.name].append(later)
        self._num_indices = max(self._num_indices, index + 1)
        return bisect_left(self._indices[dataset], index)


def build_mixture(
    specs: Sequence[DatasetSpec],
    *,
    seed: int,
    size: int,
    split: Split = Split.TRAIN,
    choose: Callable[[int], Choice] | None = None,
    has_fixed_weights: bool = True,
) -> Mixture:
    """Check `specs` and build a mixture of those with a positive weight.

    Args:
        specs: The datasets.
        seed: The user's seed.
        size: Number of problems.
        split: Range of Reasoning Gym seeds.
        choose: Returns the dataset of problem i; by default datasets are drawn by weight.
        has_fixed_weights: Whether `choose` draws datasets by their weights in `specs`.

    Returns:
        The mixture.

    Raises:
        ConfigError: A spec, the seed or the size cannot be used.
    """
    check_specs(specs)
    drawn = [spec for spec in specs if spec.weight > 0]
    return Mixture(drawn, seed=seed, size=size, split=split, choose=choose, has_fixed_weights=has_fixed_weights)


def parse_mixture(raw: Mapping[str, Any]) -> list[DatasetSpec]:
    """Parse and check the mixture of a configuration.

    Args:
        raw: `{dataset: {weight: 1, config: {...}}}`; weight and config are optional. `generator` names the registered
            dataset if the entry has another name. The keys of a `QuestionSource` replace config, such as path.

    Returns:
        The datasets in order.

    Raises:
        ConfigError: The form is different, a dataset or parameter is unknown, or a value cannot be used.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"the mixture is a {type(raw).__name__}; write a mapping, as in `{{chain_sum: {{weight: 1}}}}`"
        )
    specs = [read_spec(name, {} if options is None else options) for name, options in raw.items()]
    check_specs(specs)
    return specs


def read_spec(name: str, options: Any) -> DatasetSpec:
    """Read an entry of a mixture, without a check of its weight and parameters.

    Args:
        name: The name of the entry.
        options: Its `weight`, and either `config` and `generator`, or the keys of a `QuestionSource`.

    Returns:
        The dataset.

    Raises:
        ConfigError: The form is different, or the source cannot be used.
    """
    where = f"dataset {name!r} of the mixture"
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where} is {options!r}; write a mapping, as in `{{weight: 1, config: {{...}}}}`")
    if source := source_of_entry(options):
        allowed = ("weight", source.key, *source.options)
        check_options(options, allowed, where=where)
        params = source.read(name, {key: value for key, value in options.items() if key != "weight"})
        return DatasetSpec(name, options.get("weight", 1.0), params, source.generator)
    check_options(options, ("weight", "config", "generator"), where=where)
    params = {} if options.get("config") is None else options["config"]
    if not isinstance(params, Mapping):
        raise ConfigError(f"dataset {name!r} has config {params!r}; write a mapping of parameters")
    return DatasetSpec(name, options.get("weight", 1.0), dict(params), read_generator(options.get("generator", name)))


def check_options(options: Mapping[str, Any], allowed: Sequence[str], *, where: str) -> None:
    """Raise ConfigError if an entry of a mixture or of an evaluation file has a key that is not allowed."""
    if unknown := [key for key in options if key not in allowed]:
        others = [source.key for source in SOURCES.values() if source.key not in allowed]
        sources = f", or one of {', '.join(others)} for other sources" if others else ""
        raise ConfigError(f"{where} has {unknown[0]!r}; use only {', '.join(map(repr, allowed))}{sources}")


def read_generator(name: Any) -> str:
    """Return the name of a registered dataset; raise ConfigError for a name that only a `QuestionSource` has."""
    if not isinstance(name, str) or not name or name in SOURCES:
        raise ConfigError(f"unknown dataset {name!r}; {choose_from(str(name), DATASETS)}")
    return name


def spec_of_split(spec: DatasetSpec, split: Split) -> DatasetSpec:
    """Return the dataset with the parameters for problems of `split`."""
    if spec.generator not in SOURCES:
        return spec
    is_training = split is not Split.VALIDATION
    return replace(spec, params=SOURCES[spec.generator].params_of_split(spec.params, is_training=is_training))


def check_specs(specs: Sequence[DatasetSpec]) -> None:
    """Raise ConfigError unless every dataset exists with these parameters and some weight is positive."""
    if not specs:
        raise ConfigError("the mixture is empty; add at least one dataset, as in `{chain_sum: {weight: 1}}`")
    for spec in specs:
        check_spec(spec)
    if sum(spec.weight for spec in specs) <= 0:
        raise ConfigError(
            f"the weights of {', '.join(spec.name for spec in specs)} sum to 0; give one a weight above 0"
        )


# Reasoning Gym compares only ranges: it takes "yes" for a flag and 2.5 for a count.
_FORMS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: (
        "a finite number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"),
    ),
    str: ("a text", lambda value: isinstance(value, str)),
    list: ("a list", lambda value: isinstance(value, list | tuple)),
}


def _wrong_form(value: Any, hint: Any) -> str | None:
    """Return a description of the values that a type takes if `value` is not one of them."""
    if get_origin(hint) in (Union, UnionType):
        wrong = [_wrong_form(value, one) for one in get_args(hint)]
        return None if None in wrong else " or ".join(words for words in wrong if words and words != "null")
    if hint is type(None):
        return None if value is None else "null"
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"one of {', '.join(map(str, get_args(hint)))}"
    kind = get_origin(hint) or hint
    words, allows = _FORMS.get(list if kind is tuple else kind, ("", lambda _: True))
    return None if allows(value) else words


def _parameter_types(generator: str) -> dict[str, Any]:
    config = DATASETS[generator][1]
    try:
        hints = get_type_hints(config)
    except Exception:  # A package may annotate with names that exist only for a type checker.
        hints = {}
    return {f.name: hints.get(f.name) for f in fields(config)}


# The classes of registered datasets, with parameters that they have accepted. A start checks each dataset many times,
# and some datasets read large files when they are created.
_ACCEPTED: set[tuple[type, str]] = set()


def check_spec(spec: DatasetSpec) -> None:
    """Raise ConfigError unless the dataset exists and accepts these parameters."""
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        raise ConfigError(f"a dataset has the name {spec.name!r}; use letters, digits, '_', '-' and '/'")
    if spec.name in DATASETS and spec.generator != spec.name:
        raise ConfigError(f"{spec.name!r} is a registered dataset with other problems; choose another name")
    if isinstance(spec.weight, bool) or not isinstance(spec.weight, int | float) or not 0 <= spec.weight < float("inf"):
        raise ConfigError(f"dataset {spec.name!r} has weight {spec.weight!r}; a weight is a number from 0 up")
    if spec.generator in SOURCES:
        create_dataset(spec, seed=0, size=1)
        return
    if spec.generator not in DATASETS:
        raise ConfigError(f"unknown dataset {spec.generator!r}; {choose_from(spec.generator, DATASETS)}")
    if spec.generator == "composite":
        raise ConfigError("dataset 'composite' is itself a mixture; list its datasets directly")
    types = _parameter_types(spec.generator)
    allowed = set(types) - set(_RESERVED_PARAMS)
    for param, value in spec.params.items():
        if param in _RESERVED_PARAMS:
            raise ConfigError(f"parameter {param!r} of dataset {spec.name!r} is set by the mixture; remove it")
        if param not in allowed:
            raise ConfigError(f"dataset {spec.name!r} has no parameter {param!r}; {choose_from(param, allowed)}")
        if words := _wrong_form(value, types[param]):
            raise ConfigError(f"parameter {param!r} of dataset {spec.name!r} is {value!r}; give {words}")
    try:
        params = dump_entry(dict(spec.params))
    except TypeError as error:
        raise ConfigError(f"the parameters of dataset {spec.name!r} must be serialisable, but {error}") from error
    key = DATASETS[spec.generator][0], params
    if key not in _ACCEPTED:
        create_dataset(spec, seed=0, size=1)
        _ACCEPTED.add(key)


def create_dataset(spec: DatasetSpec, *, seed: int, size: int) -> Any:
    """Create the dataset of `spec`: a registered one of Reasoning Gym, or a `QuestionSource`.

    Args:
        spec: The dataset and its parameters.
        seed: Reasoning Gym's seed.
        size: Number of problems. A source has no use for it.

    Returns:
        The dataset.

    Raises:
        ConfigError: The dataset refuses a parameter.
    """
    if spec.generator in SOURCES:
        return SOURCES[spec.generator](spec.params, seed=seed)
    params = _with_tuples(spec)
    with _global_state_lock:
        try:
            dataset = reasoning_gym.create_dataset(spec.generator, seed=seed, size=size, **params)
        except Exception as error:  # Datasets of other packages may raise any type.
            reason = str(error) or type(error).__name__
            raise ConfigError(f"dataset {spec.name!r} refuses {dict(spec.params)}: {reason}") from error
        if hasattr(dataset, "_jsonl_data"):
            # codeio keeps its programs on the class, and another instance may replace them.
            dataset._jsonl_data = type(dataset)._jsonl_data
    return dataset


def _with_tuples(spec: DatasetSpec) -> dict[str, Any]:
    # YAML has no tuples, so convert a list if the default of the parameter is a tuple.
    tuples = {f.name for f in fields(DATASETS[spec.generator][1]) if isinstance(f.default, tuple)}
    return {
        key: tuple(value) if isinstance(value, list) and key in tuples else value for key, value in spec.params.items()
    }


_global_state_lock = threading.RLock()


@contextmanager
def _fixed_global_state(seed: int) -> Iterator[None]:
    """Set the random generators and the decimal context by `seed`, and restore them afterwards."""
    with _global_state_lock:
        python_state, numpy_state = random.getstate(), numpy.random.get_state()
        # list_functions and codeio use the global generators, and programs of codeio set the decimal precision.
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            with decimal.localcontext(decimal.Context()):
                yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)
