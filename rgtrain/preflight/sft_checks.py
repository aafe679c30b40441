"""Check the configuration of supervised fine-tuning on right answers, and this machine."""

from collections.abc import Sequence

from rgtrain.checkpoints.supervised_run import MODEL_FOLDER, is_supervised
from rgtrain.config.plain_tree import lookup
from rgtrain.config.run_config import RunConfig
from rgtrain.config.verl_keys import check_verl_keys
from rgtrain.errors import ConfigError
from rgtrain.preflight.checks import check_held_out_files, check_problems, check_scorer
from rgtrain.preflight.gpu_checks import check_devices
from rgtrain.preflight.machine_checks import check_machine
from rgtrain.preflight.model_families import check_family
from rgtrain.preflight.prompt_checks import check_prompts
from rgtrain.preflight.run_folder import changed_settings, check_run_dir
from rgtrain.preflight.sft_keys import is_read, without_effect
from rgtrain.preflight.training_model import check_fits_model, check_model_is_available, find_model
from rgtrain.problems.prompts import parse_prompt
from rgtrain.provenance import masked_values


def check_sft(config: RunConfig, *, words: Sequence[str] = (), is_for_here: bool = True) -> list[str]:
    """Check a supervised run's configuration, and this machine if the run is for it.

    Args:
        config: The run's configuration.
        words: The overrides of the command line. A warning names those that have no effect.
        is_for_here: Whether the run is for this machine.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError: The first error found.
    """
    _check_supported(config)
    _check_token_budget(config)
    check_verl_keys(config)
    check_run_dir(config.run_dir)
    _check_folder(config)
    parse_prompt(config.data.prompt)
    check_scorer(config)
    check_held_out_files(config)
    check_problems(config)
    model = find_model(config)
    warnings = [*without_effect(words), *check_family(config, model)]
    check_fits_model(config, model)
    warnings += check_prompts(config)
    check_devices(config, is_for_here=is_for_here)
    warnings += check_machine(config)
    warnings += filter(None, [check_model_is_available(config, is_for_here=is_for_here)])
    return warnings


def _check_supported(config: RunConfig) -> None:
    """Raise ConfigError for settings that only reinforcement learning has."""
    data, trainer = config.data, config.trainer
    if trainer.num_gpus > 1:
        raise ConfigError(
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node} and trainer.nnodes={trainer.nnodes}, but supervised "
            "fine-tuning runs on one GPU; set both to 1"
        )
    if datasets := data.curriculum.get("datasets"):
        raise ConfigError(
            f"data.curriculum has {', '.join(datasets)}, but a curriculum needs the scores of rollouts; set the "
            "parameters in data.mixture instead, and data.curriculum.datasets={}"
        )
    if trainer.val_only:
        raise ConfigError(
            "trainer.val_only is true, but supervised fine-tuning does not validate; run train_grpo.py with "
            "trainer.val_only=true"
        )
    if trainer.resume_mode == "resume_path":
        raise ConfigError(
            "trainer.resume_mode is resume_path, but supervised fine-tuning starts from a model; give its folder as "
            "model=FOLDER, and remove trainer.resume_mode"
        )
    if (policy := data.mixture_policy.get("name", "fixed")) != "fixed":
        raise ConfigError(
            f"data.mixture_policy.name is {policy!r}, but only the scores of rollouts can adapt a mixture; set "
            "mixture_policy=fixed"
        )
    if lookup(config.whole, "actor_rollout_ref.actor.profiler.enable"):
        raise ConfigError(
            "actor_rollout_ref.actor.profiler.enable is true, but supervised fine-tuning has no profile; remove "
            "debug=profile, or set it to false"
        )
    if data.train_batch_size > data.train_size:
        raise ConfigError(
            f"data.train_batch_size={data.train_batch_size} exceeds data.train_size={data.train_size}; lower it"
        )
    if config.model.lora_rank:
        raise ConfigError(
            f"actor_rollout_ref.model.lora_rank is {config.model.lora_rank}, but supervised fine-tuning trains all "
            "parameters; set it to 0"
        )
    if config.model.lora_adapter_path:
        raise ConfigError(
            f"actor_rollout_ref.model.lora_adapter_path is {config.model.lora_adapter_path}, but supervised "
            "fine-tuning trains all parameters; merge the adapter into the model, and set it to null"
        )
    if config.model_choice.template_opens_thinking:
        raise ConfigError(
            "the chat template ends the prompt with an open <think> tag, but right answers come without thinking; set "
            "data.apply_chat_template_kwargs={enable_thinking: false}, or give another template as "
            "actor_rollout_ref.model.custom_chat_template"
        )


def _check_token_budget(config: RunConfig) -> None:
    """Raise ConfigError if verl's engine would refuse a sample, because it is longer than a micro-batch may be."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    budget = config.actor.ppo_max_token_len_per_gpu
    # The engine `fast` gives a longer sample its own micro-batch.
    if config.engine == "verl" and budget < longest:
        raise ConfigError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu is {budget}, but a sample may have {longest} tokens "
            "(data.max_prompt_length plus data.max_response_length); raise the first to that number"
        )


def _check_folder(config: RunConfig) -> None:
    """Raise ConfigError if the run's folder holds a run of `train_grpo.py`, or a model of other settings."""
    run_dir = config.run_dir
    if not (run_dir / "config.yaml").exists():
        return
    if not is_supervised(run_dir):
        raise ConfigError(f"run_dir={run_dir} holds a run of train_grpo.py; set run_dir=ANOTHER")
    if not (run_dir / MODEL_FOLDER).exists():
        return
    changed = [one for one in changed_settings(masked_values(config.whole), run_dir) if is_read(one[0])]
    if changed:
        differences = ", ".join(f"{key} ({before} there, {now} now)" for key, before, now in changed[:3])
        raise ConfigError(
            f"run_dir={run_dir} holds a model of other settings, {differences:.300}; set run_dir=ANOTHER, or delete "
            "the folder"
        )
