"""The problems of an evaluation file."""

import subprocess
import sys
from pathlib import Path

import pytest
import reasoning_gym
from support.evaluation_files import write_evaluation_file

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.evaluation_set import load_evaluation_problems


@pytest.fixture
def evaluation_file(tmp_path) -> Path:
    """The path of an evaluation file with four sums."""
    return write_evaluation_file(tmp_path, model=tmp_path / "model")


def test_problems_are_those_of_reasoning_gym_for_the_seed(evaluation_file):
    problems = load_evaluation_problems(evaluation_file)
    published = reasoning_gym.create_dataset("chain_sum", seed=42, size=4)
    assert [problem.question for problem in problems] == [published[i]["question"] for i in range(4)]


def test_progress_is_called_for_every_problem(evaluation_file):
    steps = []
    problems = load_evaluation_problems(evaluation_file, progress=lambda: steps.append(None))
    assert len(steps) == len(problems)


def test_problems_of_a_file_are_made_without_torch(evaluation_file):
    code = (
        "import sys; from rgtrain.problems.evaluation_set import load_evaluation_problems as load\n"
        f"load({str(evaluation_file)!r}); assert not sys.modules.keys() & {{'torch', 'vllm', 'verl', 'ray'}}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
