"""Validation problems of a run from evaluation files, in place of problems of its mixture."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT, project_path
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems, read_datasets
from rgtrain.problems.mixture import DatasetSpec, Problem

_DIGEST_DIGITS = 16


def read_validation_datasets(files: Sequence[str | Path]) -> list[EvaluationDataset]:
    """Read the datasets of evaluation files.

    Args:
        files: Evaluation YAML files, relative to the project root.

    Returns:
        The datasets in the order of the files. All names differ, because validation reports by name.

    Raises:
        ConfigError: A file or one of its datasets cannot be used, or two datasets have the same name.
    """
    for file in files:
        if not project_path(file).is_file():
            raise ConfigError(
                f"data.validation_files names {file}, which is not a file in {PROJECT_ROOT}; correct or remove it"
            )
    datasets = [dataset for file in files for dataset in read_datasets(project_path(file))]
    repeated = [name for name, count in Counter(dataset.name for dataset in datasets).items() if count > 1]
    if repeated:
        name = repeated[0]
        raise ConfigError(
            f"data.validation_files lists dataset {name!r} more than once, but validation reports by name; remove one, "
            f"or give it another name, as in `{{dataset: {name}_2, generator: {name}}}`"
        )
    return datasets


# A start needs the problems of a dataset several times, for its checks and for the trainer.
_MADE: dict[str, list[Problem]] = {}


def validation_problems(files: Sequence[str | Path], *, progress: Callable[[], None] = lambda: None) -> list[Problem]:
    """Make the problems of evaluation files, with the parameters and seeds of the files.

    Args:
        files: Evaluation YAML files, relative to the project root.
        progress: Called after each problem that is made.

    Returns:
        The problems in the order of the files. Without files, there are none.

    Raises:
        ConfigError: A file or one of its datasets cannot be used, or two datasets have the same name.
    """
    problems: list[Problem] = []
    for dataset in read_validation_datasets(files):
        key = f"{dataset.name} {content_digest(dataset)}"
        if key not in _MADE:
            _MADE[key] = make_problems(dataset, progress=progress)
        problems += _MADE[key]
    return problems


def content_digest(dataset: EvaluationDataset) -> str:
    """Return a digest of the values that determine the problems of a dataset, in hexadecimal.

    Moving a file of questions does not change the digest, because its parameters have the SHA-256 of its content.
    """
    params = {key: value for key, value in dataset.params.items() if key != "path" or "sha256" not in dataset.params}
    values = json.dumps(
        [dataset.spec.generator, params, dataset.seed, dataset.size], sort_keys=True, ensure_ascii=True, default=str
    )
    return hashlib.sha256(values.encode()).hexdigest()[:_DIGEST_DIGITS]


def specs_of(problems: Sequence[Problem]) -> list[DatasetSpec]:
    """Return the datasets of problems with their parameters, in the order of their first problems."""
    return list({problem.dataset: problem.spec for problem in problems if problem.spec is not None}.values())


def check_prompt_lengths(
    problems: Sequence[Problem], *, num_tokens: Callable[[Problem], int], max_prompt_length: int
) -> None:
    """Check that no prompt is too long, because a validation must answer all problems of its files.

    Args:
        problems: The problems.
        num_tokens: Returns the length of a problem's prompt in tokens.
        max_prompt_length: The longest prompt in tokens, `data.max_prompt_length`.

    Raises:
        ConfigError: A prompt is too long.
    """
    longest: dict[str, int] = {}
    for problem in problems:
        longest[problem.dataset] = max(num_tokens(problem), longest.get(problem.dataset, 0))
    too_long = {name: length for name, length in longest.items() if length > max_prompt_length}
    if too_long:
        name = max(too_long, key=too_long.__getitem__)
        others = f" ({len(too_long)} datasets have prompts that are too long)" if len(too_long) > 1 else ""
        raise ConfigError(
            f"a validation problem of dataset {name!r} has a prompt of {too_long[name]} tokens, but "
            f"data.max_prompt_length is {max_prompt_length}{others}; set data.max_prompt_length={too_long[name]} or "
            "higher, or change the dataset in data.validation_files"
        )
