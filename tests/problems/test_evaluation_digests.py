"""Training never meets a problem of the shipped evaluation files, at little cost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rgtrain.paths import CONFIGS, PROJECT_ROOT
from rgtrain.problems import evaluation_digests as module
from rgtrain.problems.evaluation_digests import evaluation_digests, shipped_evaluation_files
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems, read_datasets
from rgtrain.problems.splits import build_splits

TABLE = json.loads((PROJECT_ROOT / "rgtrain" / "problems" / "data" / "evaluation_digests.json").read_text())


def mixture_of(name: str, *datasets: str) -> dict:
    mixture = yaml.safe_load((CONFIGS / "mixture" / f"{name}.yaml").read_text())["mixture"]
    return {dataset: mixture[dataset] for dataset in datasets or mixture}


def evaluation_file(folder: Path, **dataset) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(json.dumps({"categories": [{"category": "any", "datasets": [dataset]}]}))
    return path


def test_the_shipped_files_are_all_evaluation_files():
    shipped = {str(path.relative_to(PROJECT_ROOT / "evaluation")) for path in shipped_evaluation_files()}
    assert {"quickstart.yaml", "inter_generalisation/algorithmic.yaml", "categories/arithmetic.yaml"} <= shipped
    for path in (PROJECT_ROOT / "evaluation").rglob("*.yaml"):
        assert (str(path.relative_to(PROJECT_ROOT / "evaluation")) in shipped) == ("categories:" in path.read_text())


@pytest.mark.parametrize(
    ("mixture", "datasets", "file"),
    [
        ("intra_arithmetic", ["lcm"], "categories/arithmetic.yaml"),
        ("inter_algorithmic", ["jugs", "binary_matrix", "ab"], "inter_generalisation/algorithmic.yaml"),
    ],
)
def test_training_meets_no_problem_of_an_evaluation_that_no_experiment_names(mixture, datasets, file):
    evaluated = {
        problem.digest
        for dataset in read_datasets(PROJECT_ROOT / "evaluation" / file, generators=datasets)
        for problem in make_problems(dataset)
    }
    options = {"mixture": mixture_of(mixture, *datasets), "seed": 1, "train_size": 600, "validation_size": 12}
    for hold_out, is_met in ((True, False), (False, True)):
        splits = build_splits(**options, hold_out_shipped=hold_out)
        trained = {draw.problem.digest for draw in splits.training}
        assert bool(trained & evaluated) == is_met
        assert hold_out == (evaluated <= splits.held_out._digests)


def test_a_dataset_of_several_files_is_made_once_at_its_largest_size(tmp_path):
    files = [evaluation_file(tmp_path, dataset="gcd", size=size, params={}) for size in (3, 8, 5)]
    files.append(evaluation_file(tmp_path, dataset="gcd", size=2, seed=7))
    files.append(evaluation_file(tmp_path, dataset="lcm", size=4))
    num_made = [0]
    found = evaluation_digests(files, generators={"gcd"}, progress=lambda: num_made.append(num_made.pop() + 1))
    assert set(found) == {"gcd"}
    assert num_made == [10]
    expected = [*make_problems(EvaluationDataset("", "gcd", 8)), *make_problems(EvaluationDataset("", "gcd", 2, 7))]
    assert found["gcd"] == {problem.digest for problem in expected}


def test_stored_digests_are_used_only_if_the_first_problem_is_the_same(tmp_path, monkeypatch):
    file = evaluation_file(tmp_path, dataset="gcd", size=3)
    made = [problem.digest for problem in make_problems(EvaluationDataset("", "gcd", 3))]
    table = {"gcd {} 42": made[0] + "0" * 16 + "1" * 16 + "2" * 16}
    monkeypatch.setattr(module, "_table", lambda: table)
    assert evaluation_digests([file], generators={"gcd"})["gcd"] == {made[0], "0" * 16, "1" * 16}
    table["gcd {} 42"] = "9" * 16 + "0" * 48
    assert evaluation_digests([file], generators={"gcd"})["gcd"] == set(made)
    table["gcd {} 42"] = made[0] + made[1]
    assert evaluation_digests([file], generators={"gcd"})["gcd"] == set(made)


def stored_datasets() -> list[EvaluationDataset]:
    """Return the datasets of the shipped files whose digests are stored."""
    names = {key.partition(" ")[0] for key in TABLE}
    found = {
        module._key(one): one for file in shipped_evaluation_files() for one in read_datasets(file, generators=names)
    }
    return [found[key] for key in TABLE]


def test_the_stored_digests_are_those_of_the_shipped_files_and_of_this_reasoning_gym():
    for dataset in stored_datasets():
        text = TABLE[module._key(dataset)]
        assert len(text) >= 16 * dataset.size
        assert module._made(replace(dataset, size=1)) == [text[:16]], dataset.name


@pytest.mark.slow
def test_all_stored_digests_are_up_to_date(tmp_path):
    for dataset in stored_datasets():
        text = TABLE[module._key(dataset)]
        assert "".join(module._made(replace(dataset, size=len(text) // 16))) == text, dataset.name


def test_problems_of_an_original_are_held_out_from_the_corrected_dataset(tmp_path):
    files = [evaluation_file(tmp_path, dataset="coin_flip", size=5)]
    mixture = {"sound/coin_flip": {"config": {"min_trials": 9}}}
    splits = build_splits(
        mixture=mixture, seed=1, train_size=8, validation_size=2, held_out_files=files, hold_out_shipped=False
    )
    evaluated = {problem.digest for problem in make_problems(EvaluationDataset("", "sound/coin_flip", 5))}
    assert splits.held_out._digests >= evaluated
