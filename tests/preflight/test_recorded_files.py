"""The content of a file of questions is part of a run's settings."""

import json

import pytest
from omegaconf import OmegaConf

from rgtrain.preflight.recorded_files import record_question_files


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
