"""Training, validation and evaluation problems of one run, provably without overlap."""

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
    """The problems of one run. `held_out` are all that training must not draw: of validation, files, examples."""

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
        mixture: The datasets, in the configuration's form.
        seed: The run's seed.
        train_size: Number of training problems.
        validation_size: Number of validation problems.
        held_out_files: Evaluation YAML files, relative to the project's root.
        examples: Worked examples of the prompts, which neither training nor validation may ask for.
        choose_training: Chooses the dataset of each training problem, instead of by weight.
        choose_validation: The same for validation.
        fits: Whether a problem's prompt is short enough; asked for every candidate.
        progress: Called after each problem of the evaluation files, which `fits` is not asked for.

    Returns:
        The splits. Training problems are made when they are drawn.

    Raises:
        ConfigError: The input cannot be used, or a dataset has too few problems for all three.
    """
    specs = parse_mixture(mixture)
    # Problems of other datasets can't be drawn, and take time to make.
    names = {spec.name for spec in specs}
    evaluation = [
        problem
        for file in held_out_files
        for problem in load_evaluation_problems(project_path(file), of=names, progress=progress)
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
