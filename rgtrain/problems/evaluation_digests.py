"""Digests of the problems of evaluation files, which training must not meet.

Some datasets need up to half a second per problem. The digests of their problems in the shipped files are stored in
data/evaluation_digests.json. `python -m rgtrain.problems.evaluation_digests` writes that file again.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from rgtrain.paths import SHIPPED
from rgtrain.problems.entries import DIGEST_DIGITS
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems, read_datasets
from rgtrain.problems.question_sources import SOURCES
from rgtrain.problems.sound_datasets import original_of

_TABLE = Path(__file__).with_name("data") / "evaluation_digests.json"
# The benchmarks of lm-evaluation-harness have no Reasoning Gym problems.
_OTHER_FORMAT = "external"
_STORED_FROM_SECONDS = 0.3
# Their problems are not entirely reproducible.
_NEVER_STORED = ("codeio",)


def shipped_evaluation_files() -> list[Path]:
    """Return the evaluation files that the project ships, in the folder evaluation/."""
    folder = SHIPPED / "evaluation"
    return sorted(path for path in folder.rglob("*.yaml") if _OTHER_FORMAT not in path.relative_to(folder).parts)


def evaluation_digests(
    files: Iterable[Path],
    *,
    generators: Collection[str],
    is_needed: Callable[[EvaluationDataset], bool] = lambda dataset: True,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, set[str]]:
    """Return the digests of the problems of evaluation files.

    Args:
        files: The evaluation files.
        generators: The generators of the datasets to include. Other datasets take no time.
        is_needed: Returns whether to include a dataset of a file; by default all are included.
        progress: Called after each problem that is made.

    Returns:
        The digests (see `Problem.digest`) by generator, for those of `generators` that the files have.

    Raises:
        ConfigError: A file or one of its datasets cannot be used.
    """
    found: dict[str, set[str]] = {}
    for dataset in filter(is_needed, _merged(files, generators)):
        found.setdefault(dataset.spec.generator, set()).update(_stored(dataset) or _made(dataset, progress))
    return found


def _merged(files: Iterable[Path], generators: Collection[str]) -> list[EvaluationDataset]:
    """Return the datasets of all files. Those that differ only in size become one dataset of the largest size."""
    merged: dict[str, EvaluationDataset] = {}
    for file in files:
        for dataset in _datasets(file, generators):
            other = merged.get(_key(dataset), dataset)
            merged[_key(dataset)] = max(dataset, other, key=lambda one: one.size)
    return list(merged.values())


def _datasets(file: Path, generators: Collection[str]) -> list[EvaluationDataset]:
    # A search is a hundred times as fast as parsing, and most files have none of the datasets.
    words = [SOURCES[name].key if name in SOURCES else name for name in generators]
    if file.is_file() and not any(word in file.read_text(encoding="utf-8", errors="replace") for word in words):
        return []
    return read_datasets(file, generators=generators)


def _key(dataset: EvaluationDataset) -> str:
    # Datasets with a corrected verifier have the problems of their originals.
    return f"{original_of(dataset.spec.generator)} {json.dumps(dict(dataset.params), sort_keys=True)} {dataset.seed}"


# A start needs them twice, for its checks and for the trainer.
_MADE: dict[tuple[str, int], list[str]] = {}


def _made(dataset: EvaluationDataset, progress: Callable[[], None] = lambda: None) -> list[str]:
    key = _key(dataset), dataset.size
    if key not in _MADE:
        _MADE[key] = [problem.digest for problem in make_problems(dataset, progress=progress)]
    return _MADE[key]


def _stored(dataset: EvaluationDataset) -> list[str] | None:
    """Return the stored digests; None if there are too few, or another Reasoning Gym made them."""
    text = _table().get(_key(dataset), "")
    digests = [text[start : start + DIGEST_DIGITS] for start in range(0, len(text), DIGEST_DIGITS)]
    if len(digests) < dataset.size or digests[:1] != _made(replace(dataset, size=1)):
        return None
    return digests[: dataset.size]


@cache
def _table() -> dict[str, str]:
    table: dict[str, str] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table


def write_table(path: Path = _TABLE) -> None:
    """Store the digests of the datasets of the shipped files that take long. It takes minutes.

    Args:
        path: The file to write.
    """
    from reasoning_gym.factory import DATASETS

    table = {}
    for dataset in _merged(shipped_evaluation_files(), DATASETS):
        started = time.process_time()
        digests = _made(dataset)
        if time.process_time() - started > _STORED_FROM_SECONDS and dataset.name not in _NEVER_STORED:
            table[_key(dataset)] = "".join(digests)
    path.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
