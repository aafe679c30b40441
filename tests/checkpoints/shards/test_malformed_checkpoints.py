"""Malformed and hostile checkpoints: each is refused in one line or exported right, soon and in little memory."""

import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
from malformed_cases import CASES
from malformed_checkpoints import Outcome, run_cases

# All of them take two minutes: python benchmarks/malformed_checkpoints.py.
EVERY = 6


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_cases(CASES[::EVERY])


def test_each_malformed_checkpoint_is_refused_in_one_line_or_exported_right(outcomes):
    assert [(outcome.case.name, outcome.verdict, outcome.output) for outcome in outcomes if not outcome.passed] == []


def test_there_are_at_least_150_malformed_checkpoints_with_names_of_their_own():
    assert len({(case.family, case.name) for case in CASES}) == len(CASES) >= 150
