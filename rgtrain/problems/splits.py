"""Disjoint training, validation and evaluation problems of a run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.paths import project_path
from rgtrain.problems.evaluation_digests import evaluation_digests, shipped_evaluation_files
from rgtrain.problems.evaluation_set import EvaluationDataset
from rgtrain.problems.heldout import HeldOut, TrainingProblems, draw_distinct
from rgtrain.problems.mixture import (
    Choice,
    DatasetSpec,
    Mixture,
    Problem,
    Split,
    build_mixture,
    parse_mixture,
    spec_of_split,
)
from rgtrain.problems.question_sources import SOURCES
from rgtrain.problems.sound_datasets import generators_of_same_problems

# The parameters of a source that decide which rows it has: those of a file, and those of a verifiers environment.
_ROW_KEYS = ("sha256", "package", "args", "held_out", "rows")


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
    hold_out_shipped: bool = True,
    examples: Sequence[Problem] = (),
    evaluated: Sequence[Problem] = (),
    choose_training: Callable[[int], Choice] | None = None,
    choose_validation: Callable[[int], Choice] | None = None,
    has_fixed_weights: bool = True,
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
        hold_out_shipped: Whether to hold out the problems of the evaluation files that the project ships, too.
        examples: Worked examples of the prompts, which neither training nor validation may use.
        evaluated: The validation problems, in place of `validation_size` problems of the mixture.
        choose_training: Chooses the dataset of each training problem; by default datasets are drawn by weight.
        choose_validation: The same for validation.
        has_fixed_weights: Whether `choose_training` draws datasets by the weights of the mixture.
        fits: Returns whether the prompt of a problem is short enough. It is not applied to evaluation files.
        progress: Called after each problem of the evaluation files.

    Returns:
        The splits. Training problems are made when they are drawn.

    Raises:
        ConfigError: The input cannot be used, a worked example is held out, or a dataset has too few problems.
    """
    specs = parse_mixture(mixture)
    evaluation = _held_out_digests(specs, held_out_files, hold_out_shipped=hold_out_shipped, progress=progress)
    check_examples(examples, evaluation | {problem.digest for problem in evaluated})
    validation = list(evaluated)
    if not evaluated:
        validating = build_mixture(
            specs, seed=seed, size=validation_size, split=Split.VALIDATION, choose=choose_validation
        )
        _check_limits(validating)
        validation = draw_distinct(validating, reserved=examples, digests=evaluation, fits=fits)
    held_out = HeldOut([*validation, *examples], digests=evaluation)
    training = TrainingProblems(
        build_mixture(
            specs,
            seed=seed,
            size=train_size,
            split=Split.TRAIN,
            choose=choose_training,
            has_fixed_weights=has_fixed_weights,
        ),
        held_out=held_out,
        fits=fits,
    )
    return Splits(training, validation, held_out)


def _check_limits(validation: Mixture) -> None:
    """Raise ConfigError if a dataset holds out fewer problems than validation draws of it."""
    limits = validation.problem_limits()
    for name, num_drawn in (validation.num_drawn() if limits else {}).items():
        if num_drawn > limits[name]:
            raise ConfigError(
                f"dataset {name!r} holds out {limits[name]} problems, but validation draws {num_drawn} of it; set "
                f"data.validation_size={len(validation) * limits[name] // num_drawn} or lower, or raise "
                f"data.mixture.{name}.held_out"
            )


def check_examples(examples: Iterable[Problem], held_out: Collection[str]) -> None:
    """Raise ConfigError if a worked example is a held-out problem, whose digests are in `held_out`."""
    for example in examples:
        if example.digest in held_out:
            raise ConfigError(
                f"the worked example {example.question!r:.100} is a held-out problem of dataset {example.dataset!r}; "
                "remove it from data.prompt.examples, or change data.prompt.examples_seed"
            )


def check_problems_are_left(
    *,
    mixture: Mapping[str, Any],
    leave_out: Collection[str],
    seed: int,
    validation_size: int,
    held_out_files: Sequence[str | Path],
    hold_out_shipped: bool,
    examples: Sequence[Problem] = (),
    evaluated: Sequence[Problem] = (),
) -> None:
    """Check that each dataset has problems outside of the evaluation files, and enough for validation.

    No worked example may be in them.

    Args:
        mixture: The datasets, in the form of `parse_mixture`.
        leave_out: Datasets that are not checked.
        seed: The run's seed.
        validation_size: Number of validation problems.
        held_out_files: Evaluation YAML files, relative to the project root.
        hold_out_shipped: Whether the problems of the files that the project ships are held out, too.
        examples: Worked examples of the prompts.
        evaluated: The validation problems, in place of `validation_size` problems of the mixture.

    Raises:
        ConfigError: A file cannot be used, a dataset has no problems left, or a worked example is held out.
    """
    drawn = [spec for spec in parse_mixture(mixture) if spec.weight > 0]
    if not evaluated and any(spec.generator in SOURCES for spec in drawn):
        _check_limits(build_mixture(drawn, seed=seed, size=validation_size, split=Split.VALIDATION))
    specs = [spec for spec in drawn if spec.name not in leave_out]
    of_examples = {example.dataset for example in examples}
    read = [spec for spec in drawn if spec in specs or spec.name in of_examples]
    digests = {problem.digest for problem in evaluated}
    if read:
        digests |= _held_out_digests(read, held_out_files, hold_out_shipped=hold_out_shipped)
    check_examples(examples, digests)
    if not specs:
        return
    problems = TrainingProblems(build_mixture(specs, seed=seed, size=1000), held_out=HeldOut(digests=digests))
    for spec in specs:
        problems.at(Choice(spec))


def _held_out_digests(
    specs: Sequence[DatasetSpec],
    held_out_files: Sequence[str | Path],
    *,
    hold_out_shipped: bool,
    progress: Callable[[], None] = lambda: None,
) -> set[str]:
    files = [*map(project_path, held_out_files), *(shipped_evaluation_files() if hold_out_shipped else ())]
    # Skip datasets that the mixture does not draw from, because making their problems takes time.
    generators = {name for spec in specs for name in generators_of_same_problems(spec.generator)}
    validating = [spec_of_split(spec, Split.VALIDATION) for spec in specs if spec.generator in SOURCES]

    def is_needed(dataset: EvaluationDataset) -> bool:
        # Training draws none of the rows that its own source holds out. Validation uses them, as the evaluation does.
        return not any(_same_rows(dataset.spec, spec) for spec in validating)

    by_generator = evaluation_digests(files, generators=generators, is_needed=is_needed, progress=progress)
    return set().union(*by_generator.values())


def _same_rows(first: DatasetSpec, second: DatasetSpec) -> bool:
    return first.generator == second.generator and all(
        first.params.get(key) == second.params.get(key) for key in _ROW_KEYS
    )
