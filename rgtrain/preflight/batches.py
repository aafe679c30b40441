"""Check that batch sizes, group sizes and GPU counts divide each other."""

from dataclasses import replace

from rgtrain.config.plain_tree import lookup
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError

# These estimators compare a completion with the others of its group, so a group needs at least two.
_GROUP_ESTIMATORS = ("grpo", "rloo", "grpo_passk", "opo", "gpg")
_NUM_GPUS = "the number of GPUs"
_ROLLOUT = "actor_rollout_ref.rollout"
_FSDP_NODES = ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp")


def check_batches(config: RunConfig) -> None:
    """Check that the sizes of batches, mini-batches, groups, GPUs and tensor parallelism divide each other.

    Raises:
        ConfigError: A size does not divide another, a group is too small, or a batch exceeds `data.train_size`.
    """
    batch, train_size = config.data.train_batch_size, config.data.train_size
    estimator, group = config.algorithm.adv_estimator, config.rollout.n
    if estimator in _GROUP_ESTIMATORS and group < 2:
        raise ConfigError(
            f"{_ROLLOUT}.n={group} is too small, because {estimator} compares the completions of a prompt with each "
            "other; set it to 2 or more (8 is usual)"
        )
    for name, value, divisor_name, divisor in divisions(config):
        _check_divides(name, value, divisor_name, divisor)
    if train_size < batch:
        raise ConfigError(
            f"data.train_size={train_size} is less than data.train_batch_size={batch}; raise data.train_size"
        )


def divisions(config: RunConfig) -> list[tuple[str, int, str, int]]:
    """Return pairs of sizes of which the first must be a multiple of the second.

    Returns:
        Rows of name, value, name of the divisor and value of the divisor.
    """
    mini, parallel = config.actor.ppo_mini_batch_size, config.rollout.tensor_model_parallel_size
    per_node, num_gpus = config.trainer.n_gpus_per_node, config.trainer.num_gpus
    batch = config.data.train_batch_size
    responses = mini * config.rollout.n
    rows = [
        ("data.train_batch_size", batch, "actor_rollout_ref.actor.ppo_mini_batch_size", mini),
        (_NUM_GPUS, num_gpus, "rollout.tensor_model_parallel_size", parallel),
        ("trainer.n_gpus_per_node", per_node, "rollout.tensor_model_parallel_size", min(parallel, per_node)),
    ]
    # engine=fast gives ranks different numbers of samples, but each needs one.
    if config.engine == "verl" or responses < num_gpus:
        rows.insert(1, ("ppo_mini_batch_size * rollout.n", responses, _NUM_GPUS, num_gpus))
    shards = [(f"{node}.fsdp_size", lookup(config.whole, f"{node}.fsdp_size")) for node in _FSDP_NODES]
    # A larger size means all GPUs, and so does -1.
    return rows + [(_NUM_GPUS, num_gpus, key, shard) for key, shard in shards if 0 < shard < num_gpus]


def divisions_for(config: RunConfig, num_gpus: int) -> list[tuple[str, int, str, int]]:
    """Return the rows of `divisions` that depend on the number of GPUs, for `num_gpus` on each machine."""
    return divisions(replace(config, trainer=replace(config.trainer, n_gpus_per_node=num_gpus)))[1:]


def check_critic(config: RunConfig) -> None:
    """Check that a critic is enabled if and only if the algorithm needs one.

    Raises:
        ConfigError: The critic is missing or unused.
    """
    estimator, critic = config.algorithm.adv_estimator, config.critic
    if estimator == "gae" and not critic.enable:
        raise ConfigError(
            f"algorithm.adv_estimator=gae needs a critic, but critic.enable is {str(critic.enable).lower()}; set "
            "algorithm=ppo, which enables it"
        )
    if estimator != "gae" and critic.enable:
        raise ConfigError(
            f"critic.enable=true, but algorithm.adv_estimator={estimator} does not use a critic; set algorithm=ppo or "
            "critic.enable=false"
        )


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = f"{below} or {above}" if below else f"{above}"
        # A run that resumes can only change the number of GPUs.
        fewer = max(number for number in range(1, divisor) if value % number == 0)
        fix = f"{nearest}, or use {fewer} GPU{'s' if fewer > 1 else ''}" if divisor_name == _NUM_GPUS else nearest
        raise ConfigError(f"{name}={value} is not a multiple of {divisor_name}={divisor}; set it to {fix}")
