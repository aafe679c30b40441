"""What a run will do: steps, epochs, tokens, and where it writes."""

from collections.abc import Sequence
from dataclasses import dataclass

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.training_model import TrainingModel
from rgtrain.problems import DatasetSpec


@dataclass(frozen=True)
class Plan:
    """Steps of a run, how often it goes through its problems, and the most tokens a step generates."""

    num_steps: int
    num_epochs: float
    num_completions: int
    max_tokens_a_step: int


def plan_of(config: RunConfig) -> Plan:
    """From a run's configuration."""
    data, trainer = config.data, config.trainer
    steps_an_epoch = data.train_size // data.train_batch_size
    in_epochs = steps_an_epoch * trainer.total_epochs
    num_steps = min(in_epochs, trainer.total_training_steps or in_epochs)
    completions = data.train_batch_size * config.rollout.n
    return Plan(num_steps, num_steps / steps_an_epoch, completions, completions * data.max_response_length)


def drawn_specs(config: RunConfig) -> list[DatasetSpec]:
    """The datasets that a checked configuration draws from: to parse it once more would make each of them again."""
    mixture = {name: options or {} for name, options in config.data.mixture.items()}
    specs = [DatasetSpec(name, o.get("weight", 1.0), dict(o.get("config") or {})) for name, o in mixture.items()]
    return [spec for spec in specs if spec.weight > 0]


def plan_rows(config: RunConfig, model: TrainingModel, specs: Sequence[DatasetSpec]) -> list[tuple[str, str]]:
    """What will run, as names and values for people; `specs` are the datasets that are drawn from."""
    plan, data, trainer = plan_of(config), config.data, config.trainer
    total = sum(spec.weight for spec in specs)
    datasets = ", ".join(f"{spec.name} {spec.weight / total:.0%}" for spec in specs[:12])
    more = f" and {len(specs) - 12} more" if len(specs) > 12 else ""
    run_dir = config.run_dir.absolute()
    lora = config.model.lora_rank
    return [
        ("experiment", str(trainer.experiment_name)),
        ("model", f"{model.name}{f', LoRA of rank {lora}' if lora else ''}{_num_parameters(model)}"),
        ("algorithm", config.algorithm.adv_estimator + _loss(config)),
        ("datasets", datasets + more),
        ("steps", f"{plan.num_steps} of {data.train_batch_size} prompts, {plan.num_epochs:.2f} epochs"),
        ("a step", f"{plan.num_completions} completions, {plan.max_tokens_a_step:,} new tokens at most"),
        ("GPUs", f"{trainer.n_gpus_per_node} in each of {trainer.nnodes} machine(s), {trainer.device}"),
        ("logs, metrics", f"{run_dir}/train.log, {run_dir}/metrics.jsonl"),
        ("checkpoints", f"{trainer.default_local_dir.absolute()}, {_every(trainer.save_freq)}"),
        ("validation", f"{data.validation_size} problems, {_every(trainer.test_freq)}"),
        ("tracking", ", ".join(trainer.trackers)),
    ]


def _num_parameters(model: TrainingModel) -> str:
    return f" ({model.size.total / 1e9:.2f} billion parameters)" if model.size else ""


def _loss(config: RunConfig) -> str:
    actor = config.actor
    kl = "a KL loss" if actor.use_kl_loss else "a KL reward" if config.algorithm.use_kl_in_reward else "no KL"
    return f" ({actor.policy_loss.loss_mode} loss, {kl}, learning rate {actor.optim.lr})"


def _every(steps: int) -> str:
    return f"every {steps} steps" if steps > 0 else "never"
