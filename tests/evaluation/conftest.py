"""Fixtures for evaluations: a folder that looks like a model, evaluation files and answers."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from support.evaluated import SCORES, answers_of, small_config
from support.evaluation_files import write_evaluation_file

from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.judged_answers import Answer


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """Create a folder with the files of a model, which have no content."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def write_file(tmp_path, model_folder) -> Callable[..., Path]:
    """Return a function that writes an evaluation file for `model_folder` (see `write_evaluation_file`)."""
    return functools.partial(write_evaluation_file, tmp_path, model=model_folder)


@pytest.fixture
def config(tmp_path) -> EvaluationConfig:
    """Return an evaluation of four sums and two words."""
    return small_config(tmp_path)


@pytest.fixture
def answers(config) -> list[Answer]:
    """Return answers to the problems of `config`, with the scores 1, 0.5, 0, 1, 1 and 0.25."""
    return answers_of(config, SCORES)
