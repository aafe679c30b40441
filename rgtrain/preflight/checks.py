"""Checks that run at every start; they take a second or two, and the first error stops the run."""

import asyncio
from collections.abc import Callable

from rgtrain.config.run_config import RunConfig
from rgtrain.config.verl_keys import check_verl_keys
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.errors import ConfigError, choose_from
from rgtrain.machine.vllm_settings import attention_backend_warning
from rgtrain.paths import PROJECT_ROOT, project_path
from rgtrain.preflight.adapter_checks import check_adapter
from rgtrain.preflight.algorithm_checks import check_algorithm
from rgtrain.preflight.batches import check_batches, check_critic
from rgtrain.preflight.first_problems import try_own_rewards
from rgtrain.preflight.gpu_checks import check_devices, check_sleep_mode
from rgtrain.preflight.machine_checks import check_machine
from rgtrain.preflight.model_families import check_family
from rgtrain.preflight.prompt_checks import check_prompts, check_validation_prompts
from rgtrain.preflight.run_folder import check_run_folder, check_save_failure
from rgtrain.preflight.stock_verl_checks import check_separate_gpus, check_stock_verl, replaces_parts
from rgtrain.preflight.training_model import check_fits_model, check_model_is_available, find_model
from rgtrain.preflight.vllm_arguments import check_vllm_arguments
from rgtrain.problems import GroupRewards, Scorer, VerifiersTasks, parse_mixture, parse_reward
from rgtrain.problems.constant_replies import check_constant_replies
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.prompts import PromptBuilder, parse_prompt, worked_examples
from rgtrain.problems.question_file import QuestionFile, answer_warning
from rgtrain.problems.scoring import check_confinement, parse_scorer
from rgtrain.problems.soundness import check_sound
from rgtrain.problems.splits import check_problems_are_left
from rgtrain.problems.validation_files import specs_of, validation_problems


def check(config: RunConfig) -> list[str]:
    """Check a run's configuration and this machine.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError: The first error found.
    """
    warnings = [warning for run_check in _CHECKS for warning in run_check(config) or ()]
    check_devices(config)
    check_separate_gpus(config)
    warnings += check_machine(config)
    # The last one, because it may take seconds.
    check_model_is_available(config, is_for_here=True)
    return warnings


def collect_errors(config: RunConfig) -> tuple[list[str], list[str]]:
    """Collect all errors and warnings instead of stopping at the first error.

    GPUs, memory and temporary folders are checked only if the run is configured for this machine.

    Returns:
        Errors and warnings, one line each.
    """
    errors: list[str] = []
    warnings: list[str] = []
    for run_check in _CHECKS:
        try:
            warnings += run_check(config) or ()
        except ConfigError as error:
            # Several checks read the model or the prompt.
            if str(error) not in errors:
                errors.append(str(error))
    try:
        warnings += [] if errors else check_machine(config)
    except ConfigError as error:
        errors.append(str(error))
    return errors, warnings


def _check_plugins(config: RunConfig) -> list[str]:
    return import_plugins(config.plugins)


def check_datasets(config: RunConfig) -> list[str]:
    """Refuse datasets that pay for a constant answer, and return warnings about minor problems."""
    data = config.data
    drawn = [spec for spec in parse_mixture(data.mixture) if spec.weight > 0]
    files = [spec for spec in drawn if spec.generator == QuestionFile.generator]
    environments = [spec for spec in drawn if spec.generator == VerifiersTasks.generator]
    generators = {spec.name: spec.generator for spec in drawn if spec not in files + environments}
    allowed = set(data.allow_unsound_verifiers)
    return [
        *check_sound(generators, allowed=allowed - {spec.name for spec in environments}),
        *check_constant_replies(environments, allowed=allowed),
        *(warning for spec in files if (warning := answer_warning(spec))),
    ]


def _check_curriculum(config: RunConfig) -> None:
    data = config.data
    specs = parse_mixture(data.mixture)
    build_curriculum(specs, seed=data.seed, curriculum=data.curriculum, mixture_policy=data.mixture_policy)


def _check_dataloader(config: RunConfig) -> None:
    num_workers = config.data.dataloader_num_workers
    if num_workers != 0:
        raise ConfigError(
            f"data.dataloader_num_workers is {num_workers!r}; set it to 0, because curricula and adaptive mixtures are "
            "updated in the trainer's process, and a worker process would draw every problem at the initial level"
        )


def _check_reward(config: RunConfig) -> list[str]:
    specs = parse_reward(config.reward.parts)
    if any(spec.own is not None for spec in specs) and not replaces_parts(config):
        _try_own_rewards(config)
    weights = {part: weight for spec in specs for part, weight in spec.part_weights.items()}
    filtering = config.algorithm.filter_groups
    if not filtering.enable or replaces_parts(config):
        return []
    known = ["acc", "reward", "solved", "answered", *(f"reward_{part}" for part in weights)]
    if (metric := filtering.metric) not in known:
        raise ConfigError(f"algorithm.filter_groups.metric is {metric!r}; {choose_from(str(metric), known)}")
    if metric == "acc" and weights.get("solved") and not weights.get("accuracy"):
        return [
            "algorithm.filter_groups.metric=acc keeps groups that differ only in partial credit, which this reward "
            "does not pay; set algorithm.filter_groups.metric=solved to drop them"
        ]
    return []


def _try_own_rewards(config: RunConfig) -> None:
    with Scorer(**dict(config.reward.scorer) | {"num_workers": 1}) as scorer:
        rewards = GroupRewards(config.reward.parts, scorer=scorer, max_tokens=config.data.max_response_length)
        prompts = PromptBuilder(parse_prompt(config.data.prompt))
        asyncio.run(try_own_rewards(rewards, config.data, prompts=prompts))


def check_scorer(config: RunConfig) -> None:
    """Raise ConfigError if a setting of the scorer is unusable, or if the kernel refuses to confine it."""
    check_confinement(parse_scorer(config.reward.scorer))


def _check_prompt(config: RunConfig) -> None:
    parse_prompt(config.data.prompt)


def _check_attention(config: RunConfig) -> list[str]:
    warning = attention_backend_warning()
    return [warning] if warning else []


def _check_model(config: RunConfig) -> list[str]:
    model = find_model(config)
    warnings = check_family(config, model)
    check_fits_model(config, model)
    return warnings


def check_held_out_files(config: RunConfig) -> None:
    """Raise ConfigError if a file of `data.held_out_files` doesn't exist."""
    for file in config.data.held_out_files:
        if not project_path(file).is_file():
            raise ConfigError(
                f"data.held_out_files names {file}, which is not a file in {PROJECT_ROOT}; correct or remove it"
            )


def check_problems(config: RunConfig) -> None:
    """Raise ConfigError if a dataset has no problems outside of evaluation files, or a worked example is in them."""
    check_held_out_files(config)
    data = config.data
    style = parse_prompt(data.prompt)
    evaluated = validation_problems(data.validation_files)
    drawn = [spec for spec in parse_mixture(data.mixture) if spec.weight > 0]
    check_problems_are_left(
        mixture=data.mixture,
        # The levels of a curriculum are checked when the training problems are made.
        leave_out=data.curriculum["datasets"],
        seed=data.seed,
        validation_size=data.validation_size,
        held_out_files=data.held_out_files,
        hold_out_shipped=data.hold_out_shipped,
        # Worked examples of a curriculum's levels are checked when the training problems are made.
        examples=[example for spec in [*drawn, *specs_of(evaluated)] for example in worked_examples(spec, style)],
        evaluated=evaluated,
    )


# Cheap checks come first. Each raises ConfigError, or returns warnings or None.
_CHECKS: tuple[Callable[[RunConfig], list[str] | None], ...] = (
    # The other checks know the datasets of plugins only afterwards.
    _check_plugins,
    check_verl_keys,
    check_vllm_arguments,
    check_stock_verl,
    check_datasets,
    _check_dataloader,
    _check_reward,
    check_scorer,
    _check_prompt,
    check_batches,
    check_critic,
    check_sleep_mode,
    check_algorithm,
    _check_curriculum,
    check_problems,
    _check_attention,
    _check_model,
    check_prompts,
    check_validation_prompts,
    check_adapter,
    check_save_failure,
    check_run_folder,
)
