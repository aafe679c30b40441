import pytest

from rgtrain.preflight import problem_samples


@pytest.fixture
def quick(monkeypatch):
    """A sample of a few problems."""
    monkeypatch.setattr(problem_samples, "_BUDGET_SECONDS", 0.2)
