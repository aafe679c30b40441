from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from support.many_answers import SETTINGS, ScoredAnswer, scored_by_training

from rgtrain.environments import TaskEnvironment, open_environment, task_environment
from rgtrain.problems import Scorer


@pytest.fixture(scope="session")
def answered_environment(scorer: Scorer) -> Iterator[TaskEnvironment]:
    """Open the environment of support/many_answers.py, with the scorer of the tests."""
    with open_environment(**SETTINGS) as environment:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_environment, "Scorer", lambda **_: nullcontext(scorer))
            environment.start_scoring()
        yield environment


@pytest.fixture(scope="session")
def many_answers(answered_environment: TaskEnvironment, scorer: Scorer) -> list[ScoredAnswer]:
    """10,000 completions with the rewards that training gives them."""
    return scored_by_training(answered_environment, scorer)
