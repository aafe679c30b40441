"""Make the problems of a run from its configuration, for training itself and for the trainers of others.

This module imports no torch, because environments for other trainers import it.
"""

from collections.abc import Callable, Sequence

from rgtrain.config.run_config import DataConfig
from rgtrain.curriculum.curriculum import Curriculum
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.curriculum.weights import FixedWeights
from rgtrain.errors import ConfigError
from rgtrain.problems import parse_mixture
from rgtrain.problems.mixture import Choice, DatasetSpec, Problem
from rgtrain.problems.prompts import PromptStyle, worked_examples
from rgtrain.problems.splits import Splits, build_splits
from rgtrain.problems.validation_files import check_prompt_lengths, specs_of, validation_problems


def splits_from_config(
    data: DataConfig,
    *,
    style: PromptStyle,
    fits: Callable[[Problem], bool] = lambda problem: True,
    num_validation_tokens: Callable[[Problem], int] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Splits, Curriculum]:
    """Make the training and validation problems.

    Args:
        data: The configuration's `data` node.
        style: The style of the prompts, whose worked examples are held out.
        fits: Returns whether the prompt of a problem is short enough.
        num_validation_tokens: Returns the length of a validation prompt, to check the prompts of
            `data.validation_files`. By default, they are not checked.
        progress: Called after each problem of the evaluation files.

    Returns:
        The problems, and the curriculum that chooses the levels of the training problems.

    Raises:
        ConfigError: A dataset or a level has too few usable problems, or the files of the validation cannot be used.
    """
    specs = parse_mixture(data.mixture)
    curriculum = build_curriculum(specs, seed=data.seed, curriculum=data.curriculum, mixture_policy=data.mixture_policy)
    levels = [spec for of_dataset in curriculum.level_specs().values() for spec in of_dataset]
    evaluated = validation_problems(data.validation_files, progress=progress)
    if num_validation_tokens is not None:
        check_prompt_lengths(evaluated, num_tokens=num_validation_tokens, max_prompt_length=data.max_prompt_length)
    shown = [*specs, *levels, *specs_of(evaluated)]

    splits = build_splits(
        mixture=data.mixture,
        seed=data.seed,
        train_size=data.train_size,
        validation_size=data.validation_size,
        held_out_files=data.held_out_files,
        hold_out_shipped=data.hold_out_shipped,
        examples=[example for spec in shown for example in worked_examples(spec, style)],
        evaluated=evaluated,
        choose_training=curriculum.choose,
        choose_validation=curriculum.choose_any_level,
        has_fixed_weights=type(curriculum.weights) is FixedWeights,
        fits=fits,
        progress=progress,
    )
    _check_problems_are_left(curriculum, splits, specs)
    return splits, curriculum


def _check_problems_are_left(curriculum: Curriculum, splits: Splits, specs: Sequence[DatasetSpec]) -> None:
    """Raise ConfigError if a dataset or a level has no problems to train on, which the run would notice only later."""
    for spec in specs:
        if spec.weight > 0 and spec.name not in curriculum.ladders:
            splits.training.at(Choice(spec))
    for dataset, levels in curriculum.level_specs().items():
        for level, spec in enumerate(levels):
            try:
                splits.training.at(Choice(spec, level))
            except ConfigError as error:
                raise ConfigError(
                    f"level {level} of the curriculum of {dataset!r} has no problems to train on; set "
                    f"num_levels={level} there, or do as follows. {error}"
                ) from error
