"""Malformed and hostile checkpoints are refused in one line or exported correctly, quickly and in little memory."""

import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
from malformed_cases import CASES
from malformed_checkpoints import Outcome, run_cases

# All cases take two minutes, and benchmarks/malformed_checkpoints.py runs them.
STRIDE = 6


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_cases(CASES[::STRIDE])


def test_each_malformed_checkpoint_is_refused_in_one_line_or_exported_correctly(outcomes):
    assert [(outcome.case.name, outcome.verdict, outcome.output) for outcome in outcomes if not outcome.passed] == []


def test_there_are_at_least_150_malformed_checkpoints_with_unique_names():
    assert len({(case.family, case.name) for case in CASES}) == len(CASES) >= 150
