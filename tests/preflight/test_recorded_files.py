"""The content of a file of questions is part of a run's settings."""

import json

import pytest
from omegaconf import OmegaConf

from rgtrain.preflight.recorded_files import record_question_files, record_validation_files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {n}?", "answer": str(n)}) + "\n" for n in range(9)))
    return path


def recorded(file, **options) -> dict:
    mixture = {"gcd": None, "mine": {"path": str(file), **options}}
    return OmegaConf.to_container(record_question_files(OmegaConf.create({"data": {"mixture": mixture}})).data.mixture)


def test_the_hash_of_a_file_is_recorded_and_changes_with_its_content(file):
    first = recorded(file)
    assert first["gcd"] is None and len(first["mine"]["sha256"]) == 64
    assert recorded(file, sha256=first["mine"]["sha256"]) == first
    file.write_text(file.read_text().replace('"3"', '"4"'))
    assert recorded(file)["mine"]["sha256"] != first["mine"]["sha256"]


def test_a_file_that_cannot_be_used_is_left_to_the_checks(file):
    file.write_text("no JSON")
    assert recorded(file) == {"gcd": None, "mine": {"path": str(file)}}


def test_the_sizes_and_digests_of_validation_files_are_recorded(tmp_path):
    path = tmp_path / "validation.yaml"
    path.write_text("categories: [{category: a, datasets: [{dataset: gcd, size: 3}, {dataset: lcm, size: 4}]}]")
    data = {"validation_files": [str(path)], "validation_datasets": {}, "validation_size": 128}
    recorded = record_validation_files(OmegaConf.create({"data": data})).data
    assert recorded.validation_size == 7
    assert {name: one.size for name, one in recorded.validation_datasets.items()} == {"gcd": 3, "lcm": 4}
    # Without files, or with one that the checks refuse, nothing changes.
    for files in ([], ["absent.yaml"]):
        other = OmegaConf.create({"data": {**data, "validation_files": files}})
        assert record_validation_files(other.copy()) == other
