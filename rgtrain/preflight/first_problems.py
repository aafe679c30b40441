"""Make a problem of each dataset, on which the checks try the user's own functions."""

from collections.abc import Iterator
from dataclasses import replace

from rgtrain.config.run_config import DataConfig
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.problems import GroupRewards
from rgtrain.problems.isolated_problems import ProblemNotMade
from rgtrain.problems.mixture import Problem, ProblemSource, Split, parse_mixture, spec_of_split
from rgtrain.problems.prompts import PromptBuilder
from rgtrain.problems.validation_files import validation_problems


def first_problems(data: DataConfig) -> Iterator[Problem]:
    """Make the first training problem of each dataset that the mixture draws, and the first one of validation files.

    Args:
        data: The configuration's `data` node.

    Yields:
        The problems, at level 0 of datasets with a curriculum. A dataset whose generator fails on its problem has none.

    Raises:
        ConfigError: The mixture, the curriculum or a file of the validation cannot be used.
    """
    specs = [spec for spec in parse_mixture(data.mixture) if spec.weight > 0]
    curriculum = build_curriculum(specs, seed=data.seed, curriculum=data.curriculum, mixture_policy=data.mixture_policy)
    levels = curriculum.level_specs()
    for spec in specs:
        has_levels = spec.name in levels
        first = levels[spec.name][0] if has_levels else spec
        try:
            problem = ProblemSource(spec_of_split(first, Split.TRAIN), seed=Split.TRAIN.base_seed(data.seed))[0]
        except ProblemNotMade:
            continue
        yield replace(problem, level=0) if has_levels else problem
    evaluated = validation_problems(data.validation_files)
    # In reverse order, the first problem of a dataset is the last one that counts.
    yield from {problem.dataset: problem for problem in reversed(evaluated)}.values()


async def try_own_rewards(rewards: GroupRewards, data: DataConfig, *, prompts: PromptBuilder) -> None:
    """Call the user's reward functions with a problem of each dataset, because an entry differs by dataset.

    Args:
        rewards: The run's rewards.
        data: The configuration's `data` node.
        prompts: Builds the messages that the functions may read.

    Raises:
        ConfigError: A function fails.
    """
    for problem in first_problems(data):
        messages = prompts.messages(problem)
        await rewards.check(problem.entry, dataset=problem.dataset, messages=messages, level=problem.level)
