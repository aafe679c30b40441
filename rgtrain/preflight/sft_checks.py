"""Check the configuration of supervised fine-tuning on right answers, and this machine."""

from rgtrain.checkpoints.supervised_run import is_supervised
from rgtrain.config.run_config import RunConfig
from rgtrain.config.verl_keys import check_verl_keys
from rgtrain.errors import ConfigError
from rgtrain.preflight.checks import check_held_out_files, check_problems, check_scorer
from rgtrain.preflight.gpu_checks import check_devices
from rgtrain.preflight.machine_checks import check_machine
from rgtrain.preflight.model_families import check_family
from rgtrain.preflight.prompt_checks import check_prompts
from rgtrain.preflight.run_folder import check_run_dir
from rgtrain.preflight.training_model import check_fits_model, check_model_is_available, find_model
from rgtrain.problems.prompts import parse_prompt


def check_sft(config: RunConfig) -> list[str]:
    """Check a supervised run's configuration and this machine.

    Args:
        config: The run's configuration.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError: The first error found.
    """
    _check_supported(config)
    check_verl_keys(config)
    parse_prompt(config.data.prompt)
    check_scorer(config)
    check_held_out_files(config)
    check_problems(config)
    model = find_model(config)
    warnings = check_family(config, model)
    check_fits_model(config, model)
    warnings += check_prompts(config)
    check_run_dir(config.run_dir)
    _check_folder(config)
    check_devices(config)
    warnings += check_machine(config)
    warnings += filter(None, [check_model_is_available(config, is_for_here=True)])
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
    if data.train_batch_size > data.train_size:
        raise ConfigError(
            f"data.train_batch_size={data.train_batch_size} exceeds data.train_size={data.train_size}; lower it"
        )
    if config.model.lora_rank:
        raise ConfigError(
            f"actor_rollout_ref.model.lora_rank is {config.model.lora_rank}, but supervised fine-tuning trains all "
            "parameters; set it to 0"
        )
    if config.model_choice.template_opens_thinking:
        raise ConfigError(
            "the chat template ends the prompt with an open <think> tag, but right answers come without thinking; set "
            "data.apply_chat_template_kwargs={enable_thinking: false}, or give another template as "
            "actor_rollout_ref.model.custom_chat_template"
        )


def _check_folder(config: RunConfig) -> None:
    if (config.run_dir / "config.yaml").exists() and not is_supervised(config.run_dir):
        raise ConfigError(f"run_dir={config.run_dir} holds a run of train_grpo.py; set run_dir=ANOTHER")
