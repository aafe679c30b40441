"""The project's problems, curricula and rewards for the trainers of others, scored exactly as training scores them."""

from rgtrain.environments.problem_ids import UnknownProblem
from rgtrain.environments.task_environment import (
    CompletionScore,
    EnvironmentProblem,
    GroupReport,
    SubmittedCompletion,
    TaskEnvironment,
    open_environment,
)

__all__ = [
    "CompletionScore",
    "EnvironmentProblem",
    "GroupReport",
    "SubmittedCompletion",
    "TaskEnvironment",
    "UnknownProblem",
    "open_environment",
]
