"""Summarise a run: its steps, epochs and tokens, and the files that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.gpu_checks import describe_devices
from rgtrain.preflight.training_model import TrainingModel
from rgtrain.problems import DatasetSpec
from rgtrain.problems.mixture import read_spec


@dataclass(frozen=True)
class Plan:
    """Numbers of steps and of epochs (passes over the problems), and completions and tokens of one step."""

    num_steps: int
    num_epochs: float
    num_completions: int
    max_tokens_per_step: int


def plan_of(config: RunConfig) -> Plan:
    """Compute the plan of a run."""
    data, trainer = config.data, config.trainer
    steps_per_epoch = data.train_size // data.train_batch_size
    steps_of_all_epochs = steps_per_epoch * trainer.total_epochs
    num_steps = min(steps_of_all_epochs, trainer.total_training_steps or steps_of_all_epochs)
    completions = data.train_batch_size * config.rollout.n
    return Plan(num_steps, num_steps / steps_per_epoch, completions, completions * data.max_response_length)


def drawn_specs(config: RunConfig) -> list[DatasetSpec]:
    """Return the datasets with a positive weight of a checked configuration.

    The mixture is not parsed again, because parsing creates each dataset.
    """
    specs = [read_spec(name, options or {}) for name, options in config.data.mixture.items()]
    return [spec for spec in specs if spec.weight > 0]


def plan_rows(config: RunConfig, model: TrainingModel, specs: Sequence[DatasetSpec]) -> list[tuple[str, str]]:
    """Return names and values that describe the run; `specs` are the datasets with a positive weight."""
    plan, data, trainer = plan_of(config), config.data, config.trainer
    total = sum(spec.weight for spec in specs)
    datasets = ", ".join(f"{spec.name} {spec.weight / total:.0%}" for spec in specs[:12])
    more = f" and {len(specs) - 12} more" if len(specs) > 12 else ""
    run_dir = config.run_dir.absolute()
    lora = config.model.lora_rank
    return [
        ("experiment", str(trainer.experiment_name)),
        ("model", f"{model.name}{f', LoRA of rank {lora}' if lora else ''}{_num_parameters(model)}"),
        ("algorithm", config.algorithm.adv_estimator + _loss_description(config)),
        ("datasets", datasets + more),
        ("steps", f"{plan.num_steps} with {data.train_batch_size} prompts each, {plan.num_epochs:.2f} epochs"),
        ("per step", f"{plan.num_completions} completions, at most {plan.max_tokens_per_step:,} new tokens"),
        ("devices", describe_devices(config)),
        ("logs, metrics", f"{run_dir}/train.log, {run_dir}/metrics.jsonl"),
        ("checkpoints", f"{trainer.default_local_dir.absolute()}, {_frequency(trainer.save_freq)}"),
        ("validation", f"{data.validation_size} problems{_origin(config)}, {_validated_when(config)}"),
        ("tracking", ", ".join(trainer.trackers)),
    ]


def _num_parameters(model: TrainingModel) -> str:
    return f" ({model.size.total / 1e9:.2f} billion parameters)" if model.size else ""


def _loss_description(config: RunConfig) -> str:
    actor = config.actor
    kl = "a KL loss" if actor.use_kl_loss else "a KL reward" if config.algorithm.use_kl_in_reward else "no KL"
    return f" ({actor.policy_loss.loss_mode} loss, {kl}, learning rate {actor.optim.lr})"


def _origin(config: RunConfig) -> str:
    files = config.data.validation_files
    return f" of {', '.join(files)}" if files else ""


def _validated_when(config: RunConfig) -> str:
    return "without training" if config.trainer.val_only else _frequency(config.trainer.test_freq)


def _frequency(steps: int) -> str:
    return f"every {steps} steps" if steps > 0 else "never"
