from collections.abc import Iterator

import pytest
from support.many_answers import SETTINGS, ScoredAnswer, scored_by_training

from rgtrain.environments import TaskEnvironment, open_environment


@pytest.fixture(scope="session")
def answered_environment() -> Iterator[TaskEnvironment]:
    """Open the environment of support/many_answers.py."""
    with open_environment(**SETTINGS) as environment:
        yield environment


@pytest.fixture(scope="session")
def many_answers(answered_environment: TaskEnvironment) -> list[ScoredAnswer]:
    """10,000 completions with the rewards that training gives them."""
    return scored_by_training(answered_environment)
