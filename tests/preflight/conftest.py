import pytest

from rgtrain.preflight import problem_samples


@pytest.fixture
def quick(monkeypatch):
    """Shorten the time budget, so that only a few problems are sampled."""
    monkeypatch.setattr(problem_samples, "_BUDGET_SECONDS", 0.2)
