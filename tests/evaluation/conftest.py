"""A folder that looks like a model, and evaluation files and answers for it."""

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
    """The folder of a model that only looks like one."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def write_file(tmp_path, model_folder) -> Callable[..., Path]:
    """Writes an evaluation file of `model_folder` with other values, see `write_evaluation_file`."""
    return functools.partial(write_evaluation_file, tmp_path, model=model_folder)


@pytest.fixture
def config(tmp_path) -> EvaluationConfig:
    """An evaluation of four sums and two words."""
    return small_config(tmp_path)


@pytest.fixture
def answers(config) -> list[Answer]:
    """Answers to these problems with the scores 1, 0.5, 0, 1, 1 and 0.25."""
    return answers_of(config, SCORES)
