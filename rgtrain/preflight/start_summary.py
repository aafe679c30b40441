"""The lines that a start prints about model, algorithm, data, devices and duration."""

from collections.abc import Sequence

from rgtrain.config.plain_tree import lookup
from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.algorithm_checks import UNCLIPPED_LOSSES, clip_range
from rgtrain.preflight.duration import duration_of
from rgtrain.preflight.gpu_checks import describe_choice, describe_devices
from rgtrain.preflight.plan import drawn_specs, plan_of
from rgtrain.preflight.training_model import TrainingModel
from rgtrain.problems import DatasetSpec

_MAX_DATASETS = 8
_ENGINES = {
    "fast": "fast, the project's own worker, rollout and packing",
    "verl": "verl, its own trainer, workers, vLLM servers and agent loop",
}


def summary_rows(config: RunConfig, model: TrainingModel) -> list[tuple[str, str]]:
    """Return labels and values that describe a run.

    Args:
        config: The run's configuration.
        model: Its model.

    Returns:
        The rows in the order of printing.
    """
    data, actor = config.data, config.actor
    step = (
        f"{data.train_batch_size} prompts x {config.rollout.n} responses of at most {data.max_response_length} tokens"
    )
    choice = describe_choice(config)
    return [
        ("run", f"{config.run_dir.absolute()} (seed {config.whole['seed']})"),
        ("model", model_text(config, model)),
        ("algorithm", algorithm_text(config)),
        ("datasets", datasets_text(drawn_specs(config), curriculum=list(data.curriculum.get("datasets") or {}))),
        ("learning rate", f"{actor.optim.lr:g}"),
        ("devices", describe_devices(config)),
        *([("chosen", choice)] if choice else []),
        ("engine", _ENGINES[config.engine]),
        ("per step", step),
        ("length", _length_text(config, model)),
    ]


def _length_text(config: RunConfig, model: TrainingModel) -> str:
    if config.trainer.val_only:
        num_samples = config.rollout.val_kwargs.n
        return f"one validation of {_counted(config.data.validation_size, 'problem')} x {num_samples}, without training"
    return f"{_counted(plan_of(config).num_steps, 'step')}; {duration_of(config, model.size)}"


def model_text(config: RunConfig, model: TrainingModel) -> str:
    """Return the model's name, its number of parameters, their type, and whether all or adapters are trained."""
    fsdp, rank = config.actor.fsdp_config, config.model.lora_rank
    stored = _dtype(fsdp.model_dtype or "fp32")
    computed = _dtype((fsdp.mixed_precision or {}).get("param_dtype") or "bf16")
    parts = [model.name]
    if model.size is not None:
        parts.append(f"{_large_number(model.size.total)} parameters")
    parts.append(stored if stored == computed else f"{stored} computed in {computed}")
    if not rank:
        return ", ".join([*parts, "full training"])
    trained = f" ({_large_number(model.size.lora(rank))} trained)" if model.size is not None else ""
    return ", ".join([*parts, f"LoRA of rank {rank}{trained}"])


def algorithm_text(config: RunConfig) -> str:
    """Return the advantage estimator, the loss with its clipping range, and the KL penalty."""
    actor, whole = config.actor, config.whole
    mode = actor.policy_loss.loss_mode
    parts = [config.algorithm.adv_estimator, f"{mode} loss"]
    if mode not in UNCLIPPED_LOSSES:
        low, high = clip_range(whole)
        parts.append(f"clip {low:g}" if low == high else f"clip {low:g} below and {high:g} above")
    if actor.use_kl_loss:
        coefficient = lookup(whole, "actor_rollout_ref.actor.kl_loss_coef")
        parts.append(f"KL loss {coefficient:g} ({lookup(whole, 'actor_rollout_ref.actor.kl_loss_type')})")
    if config.algorithm.use_kl_in_reward:
        coefficient = lookup(whole, "algorithm.kl_ctrl.kl_coef")
        parts.append(f"KL in the reward {coefficient:g} ({lookup(whole, 'algorithm.kl_penalty')})")
    if not (actor.use_kl_loss or config.algorithm.use_kl_in_reward):
        parts.append("no KL")
    if config.algorithm.filter_groups.enable:
        parts.append("dynamic sampling")
    return ", ".join([*parts, *(["a critic"] if config.critic.enable else [])])


def datasets_text(specs: Sequence[DatasetSpec], *, curriculum: Sequence[str]) -> str:
    """Return the shares of the first datasets, and the number of further ones.

    Args:
        specs: The datasets with a positive weight.
        curriculum: The names of datasets with a curriculum.
    """
    total = sum(spec.weight for spec in specs)
    named = [
        f"{spec.name} {spec.weight / total:.{0 if spec.weight >= 0.01 * total else 1}%}"
        + (" with a curriculum" if spec.name in curriculum else "")
        for spec in specs[:_MAX_DATASETS]
    ]
    more = f" and {len(specs) - _MAX_DATASETS} more" if len(specs) > _MAX_DATASETS else ""
    return ", ".join(named) + more


def _dtype(name: str) -> str:
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(name, name)


def _large_number(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.3g} million"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
