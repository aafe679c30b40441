"""Disjoint training, validation and evaluation problems of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.paths import project_path
from rgtrain.problems.evaluation_set import load_evaluation_problems
from rgtrain.problems.heldout import HeldOut, TrainingProblems, draw_distinct
from rgtrain.problems.mixture import Choice, Problem, Split, build_mixture, parse_mixture


@dataclass(frozen=True)
class Splits:
    """The problems of a run. `held_out` has the validation problems, evaluation files and worked examples."""

    training: TrainingProblems
    validation: Sequence[Problem]
    held_out: HeldOut


def build_splits(
    *,
    mixture: Mapping[str, Any],
    seed: int,
    train_size: int,
    validation_size: int,
    held_out_files: Sequence[str | Path] = (),
    examples: Sequence[Problem] = (),
    choose_training: Callable[[int], Choice] | None = None,
    choose_validation: Callable[[int], Choice] | None = None,
    fits: Callable[[Problem], bool] = lambda problem: True,
    progress: Callable[[], None] = lambda: None,
) -> Splits:
    """Build disjoint training, validation and evaluation problems.

    Args:
        mixture: The datasets, in the form of `parse_mixture`.
        seed: The run's seed.
        train_size: Number of training problems.
        validation_size: Number of validation problems.
        held_out_files: Evaluation YAML files, relative to the project root.
        examples: Worked examples of the prompts, which neither training nor validation may use.
        choose_training: Chooses the dataset of each training problem; by default datasets are drawn by weight.
        choose_validation: The same for validation.
        fits: Returns whether the prompt of a problem is short enough. It is not applied to evaluation files.
        progress: Called after each problem of the evaluation files.

    Returns:
        The splits. Training problems are made when they are drawn.

    Raises:
        ConfigError: The input cannot be used, or a dataset has too few problems.
    """
    specs = parse_mixture(mixture)
    # Skip datasets that the mixture does not draw from, because making their problems takes time.
    names = {spec.name for spec in specs}
    evaluation = [
        problem
        for file in held_out_files
        for problem in load_evaluation_problems(project_path(file), names=names, progress=progress)
    ]
    validation = draw_distinct(
        build_mixture(specs, seed=seed, size=validation_size, split=Split.VALIDATION, choose=choose_validation),
        reserved=[*evaluation, *examples],
        fits=fits,
    )
    held_out = HeldOut([*evaluation, *validation, *examples])
    training = TrainingProblems(
        build_mixture(specs, seed=seed, size=train_size, split=Split.TRAIN, choose=choose_training),
        held_out=held_out,
        fits=fits,
    )
    return Splits(training, validation, held_out)
