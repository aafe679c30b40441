"""Make the problems of an evaluation file, for evaluations and for training runs that hold them out."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import (
    MAX_SPLIT_SIZE,
    DatasetSpec,
    Problem,
    ProblemSource,
    Split,
    check_spec,
    read_generator,
)
from rgtrain.problems.question_sources import SOURCES, source_of_entry
from rgtrain.yaml_files import StrictLoader

_CATEGORY_KEYS = ("category", "datasets")
_DATASET_KEYS = ("dataset", "size", "seed", "params", "generator")
# Seeds of splits start above this, so an evaluation of any size has no seed in common with training.
_MAX_SEED = Split.TRAIN.base_seed(0) - MAX_SPLIT_SIZE


@dataclass(frozen=True)
class EvaluationDataset:
    """A dataset of an evaluation. Published evaluations use 100 problems of Reasoning Gym's seed 42."""

    category: str
    name: str
    size: int = 100
    seed: int = 42
    params: Mapping[str, Any] = field(default_factory=dict)
    # The generator; empty if it is the name.
    generator: str = ""

    @property
    def spec(self) -> DatasetSpec:
        """The dataset and its parameters."""
        return DatasetSpec(self.name, params=self.params, generator=self.generator)

    def num_problems(self, limit: int | None) -> int:
        """Return the number of problems if at most `limit` of each dataset are evaluated; None means all."""
        return self.size if limit is None else min(self.size, limit)


def load_evaluation_problems(
    path: Path, *, generators: Collection[str] | None = None, progress: Callable[[], None] = lambda: None
) -> list[Problem]:
    """Make the problems of an evaluation file.

    Args:
        path: The YAML file.
        generators: The generators of the datasets to include; by default all of the file.
        progress: Called after each problem.

    Returns:
        The problems in the file's order.

    Raises:
        ConfigError: The file or one of its datasets cannot be used.
    """
    return [
        problem
        for dataset in read_datasets(path, generators=generators)
        for problem in make_problems(dataset, progress=progress)
    ]


def read_datasets(path: Path, *, generators: Collection[str] | None = None) -> list[EvaluationDataset]:
    """Read the datasets of an evaluation file.

    Args:
        path: The YAML file.
        generators: The generators of the datasets to include; by default all of the file. The parameters of others are
            not checked, because that takes up to a second per dataset.

    Returns:
        The datasets in the file's order.

    Raises:
        ConfigError: The file or one of its datasets cannot be used.
    """
    raw = read_evaluation_file(path)
    datasets = resized(parse_categories(raw.get("categories"), generators=generators), raw.get("size"))
    return [dataset for dataset in datasets if generators is None or dataset.spec.generator in generators]


def resized(datasets: Sequence[EvaluationDataset], size: Any) -> list[EvaluationDataset]:
    """Replace the sizes of datasets.

    Args:
        datasets: The datasets.
        size: The size of all datasets, a mapping such as `{chain_sum: 20}` with the sizes of some datasets, or None to
            keep all sizes.

    Returns:
        The datasets with their new sizes.

    Raises:
        ConfigError: A size cannot be used, or the mapping names another dataset.
    """
    names = {dataset.name for dataset in datasets}
    sizes = size if isinstance(size, Mapping) else dict.fromkeys(names, size)
    for name, value in sizes.items():
        if name not in names:
            raise ConfigError(f"size names the dataset {name!r}; {choose_from(str(name), names)}")
        if value is not None or isinstance(size, Mapping):
            _check_whole(value, "size", low=1, high=MAX_SPLIT_SIZE, where=f"the key size, for dataset {name!r},")
    given = {name: value for name, value in sizes.items() if value is not None}
    changed = [replace(dataset, size=given.get(dataset.name, dataset.size)) for dataset in datasets]
    for dataset in changed:
        _check_limit(dataset)
    return changed


def _check_limit(dataset: EvaluationDataset) -> None:
    """Raise ConfigError if a source has fewer problems than the dataset's size."""
    # A source that is not needed has not been read.
    if dataset.spec.generator in SOURCES and dataset.params:
        limit = ProblemSource(dataset.spec, seed=dataset.seed).num_problems
        if limit is not None and dataset.size > limit:
            raise ConfigError(
                f"dataset {dataset.name!r} has size {dataset.size}, but its source has {limit} problems; lower the size"
            )


def make_problems(
    dataset: EvaluationDataset, *, limit: int | None = None, progress: Callable[[], None] = lambda: None
) -> list[Problem]:
    """Make the problems of `dataset`. They are the same in every process with PYTHONHASHSEED=0.

    Args:
        dataset: The dataset with its size, seed and parameters.
        limit: The maximum number of problems; None for all.
        progress: Called after each problem.

    Returns:
        The first `limit` of the `dataset.size` problems.

    Raises:
        ConfigError: The dataset refuses its parameters, or cannot make one of its problems.
    """
    # Pass the exact size, also with a limit: two datasets prepare all items at once, so their first problems depend
    # on it, and word_ladder refuses large sizes.
    source = ProblemSource(dataset.spec, seed=dataset.seed, size=dataset.size)
    problems = []
    for index in range(dataset.num_problems(limit)):
        problems.append(source[index])
        progress()
    return problems


def read_evaluation_file(path: Path) -> dict[str, Any]:
    """Read an evaluation file.

    Args:
        path: The YAML file.

    Returns:
        Its mapping of keys to values. The path of a file of questions in its folder is absolute.

    Raises:
        ConfigError: The file cannot be read or holds no mapping.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read evaluation file {path}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"evaluation file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"evaluation file {path} holds a {type(raw).__name__}; write a mapping of keys to values")
    _find_beside(raw, Path(path).parent)
    return raw


def _find_beside(raw: Mapping[str, Any], folder: Path) -> None:
    """Make relative paths of files of questions absolute if such a file is in the folder of the evaluation file."""
    categories = raw.get("categories")
    for category in categories if isinstance(categories, list) else ():
        datasets = category.get("datasets") if isinstance(category, dict) else None
        for dataset in datasets if isinstance(datasets, list) else ():
            given = dataset.get("path") if isinstance(dataset, dict) else None
            if isinstance(given, str) and (folder / given).is_file():
                dataset["path"] = str((folder / given).absolute())


def parse_categories(raw: Any, *, generators: Collection[str] | None = None) -> list[EvaluationDataset]:
    """Parse and check the `categories` of an evaluation file.

    Args:
        raw: `[{category, datasets: [{dataset, size, seed, params}]}]`.
        generators: The generators of the datasets whose parameters are checked; by default all.

    Returns:
        The datasets of all categories in order.

    Raises:
        ConfigError: The form is different, a key, dataset or parameter is unknown, a value cannot be used, or a dataset
            is listed twice.
    """
    datasets = []
    for number, category in enumerate(_non_empty_list(raw, where="categories"), start=1):
        where = f"category {number}"
        _check_keys(category, _CATEGORY_KEYS, where=where)
        name = category.get("category")
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"{where} has the name {name!r}; write a name, as in `{{category: arithmetic, datasets: [...]}}`"
            )
        where = f"category {name!r}"
        for item in _non_empty_list(category.get("datasets"), where=f"datasets of {where}"):
            datasets.append(_parse_dataset(item, category=name, where=where, generators=generators))
    _check_distinct(datasets)
    return datasets


def _parse_dataset(
    raw: Any, *, category: str, where: str, generators: Collection[str] | None = None
) -> EvaluationDataset:
    source = source_of_entry(raw) if isinstance(raw, Mapping) else None
    own_keys = (source.key, *source.options, *source.evaluation_options) if source else ()
    keys = ("dataset", "size", "seed", *own_keys) if source else _DATASET_KEYS
    _check_keys(raw, keys, where=f"a dataset of {where}")
    name = raw.get("dataset")
    if not isinstance(name, str):
        raise ConfigError(f"a dataset of {where} has the name {name!r}; write `{{dataset: chain_sum}}`")
    where = f"dataset {name!r} of {where}"
    size, params = EvaluationDataset.size, {} if raw.get("params") is None else raw["params"]
    if not isinstance(params, Mapping):
        raise ConfigError(f"{where} has params {params!r}; write a mapping, as in `params: {{min_terms: 2}}`")
    if source:
        generator = source.generator
        # Reading a source may take long, and training needs only the sources that it also draws from.
        if generators is None or generator in generators:
            params = source.read(name, {key: raw[key] for key in own_keys if key in raw})
            size = source(params, seed=0).num_problems or size
    else:
        generator = read_generator(raw.get("generator", name))
    dataset = EvaluationDataset(
        category,
        name,
        raw.get("size", size),
        raw.get("seed", EvaluationDataset.seed),
        params,
        "" if generator == name else generator,
    )
    _check_whole(dataset.size, "size", low=1, high=MAX_SPLIT_SIZE, where=where)
    _check_whole(dataset.seed, "seed", low=0, high=_MAX_SEED, where=where)
    if generators is None or dataset.spec.generator in generators:
        check_spec(dataset.spec)
    return dataset


def _check_whole(value: Any, key: str, *, low: int, high: int, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{where} has {key} {value!r}; give a whole number from {low} to {high}")


def _non_empty_list(raw: Any, *, where: str) -> list[Any]:
    if not isinstance(raw, list) or not raw:
        given = "empty" if raw == [] else "missing" if raw is None else f"a {type(raw).__name__}"
        raise ConfigError(
            f"{where} is {given}; list at least one, as in "
            "`[{category: arithmetic, datasets: [{dataset: chain_sum}]}]`"
        )
    return raw


def _check_keys(raw: Any, allowed: tuple[str, ...], *, where: str) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is {raw!r}; write a mapping with the keys {', '.join(allowed)}")
    for key in raw:
        if key not in allowed:
            raise ConfigError(f"{where} has an unknown key {key!r}; {choose_from(key, allowed)}")


def _check_distinct(datasets: list[EvaluationDataset]) -> None:
    seen = set()
    for dataset in datasets:
        key = (
            dataset.category,
            dataset.name,
            dataset.seed,
            json.dumps(dict(dataset.params), sort_keys=True, default=str),
        )
        if key in seen:
            raise ConfigError(
                f"dataset {dataset.name!r} is listed twice in category {dataset.category!r} with the same seed and "
                "params; remove one or change its seed"
            )
        seen.add(key)
