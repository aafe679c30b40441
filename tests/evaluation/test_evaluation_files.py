"""The evaluation files that come with the project."""

from pathlib import Path

import pytest
from support.registered_datasets import REASONING_GYM

from rgtrain.evaluation.evaluation_config import EvaluationConfig, load_config
from rgtrain.paths import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "evaluation"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "external")
# `composite` is a mixture of other datasets.
WANTED = set(REASONING_GYM)


def load(path: Path, tiny_model: Path) -> EvaluationConfig:
    return load_config(path, overrides={"model_path": str(tiny_model)})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_loads(path, tiny_model):
    if path.parent.name == "reasoning_core":
        pytest.importorskip("reasoning_core", reason="reasoning-core is not installed")
    assert load(path, tiny_model).datasets


def test_the_category_files_contain_every_dataset_once_with_its_defaults(tiny_model):
    configs = [load(path, tiny_model) for path in (FOLDER / "categories").glob("*.yaml")]
    datasets = [dataset for config in configs for dataset in config.datasets]
    assert sorted(dataset.name for dataset in datasets) == sorted(WANTED)
    assert {(dataset.size, dataset.seed, *dataset.params) for dataset in datasets} == {(100, 42)}


def test_quick_asks_five_problems_of_every_dataset(tiny_model):
    datasets = load(FOLDER / "quick.yaml", tiny_model).datasets
    assert {dataset.name: dataset.size for dataset in datasets} == dict.fromkeys(WANTED, 5)
