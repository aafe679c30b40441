"""Batch arithmetic: what has to divide what."""

from collections.abc import Mapping
from typing import Any

from rgtrain.errors import ConfigError

# Advantages that compare a completion with its group need at least two of them.
_GROUP_ESTIMATORS = ("grpo", "rloo", "grpo_passk", "opo", "gpg")
_ROLLOUT = "actor_rollout_ref.rollout"


def check_batches(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless prompts, mini-batches, groups, GPUs and tensor parallel sizes divide each other."""
    batch, train_size = config["data"]["train_batch_size"], config["data"]["train_size"]
    for name, size in sizes(config).items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} is {size!r}; give a whole number from 1 up")
    estimator, group = config["algorithm"]["adv_estimator"], config["actor_rollout_ref"]["rollout"]["n"]
    if estimator in _GROUP_ESTIMATORS and group < 2:
        raise ConfigError(
            f"{_ROLLOUT}.n={group}: {estimator} compares the completions of a prompt with each other; set it to 2 or "
            "more (8 is usual)"
        )
    for name, value, divisor_name, divisor in divisions(config):
        _check_divides(name, value, divisor_name, divisor)
    if train_size < batch:
        raise ConfigError(f"data.train_size={train_size} is less than data.train_batch_size={batch}")


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that batches are made of, by key."""
    actor, rollout, trainer = (*_actor_and_rollout(config), config["trainer"])
    return {
        "data.train_batch_size": config["data"]["train_batch_size"],
        "data.max_prompt_length": config["data"]["max_prompt_length"],
        "data.max_response_length": config["data"]["max_response_length"],
        "actor_rollout_ref.actor.ppo_mini_batch_size": actor["ppo_mini_batch_size"],
        f"{_ROLLOUT}.n": rollout["n"],
        "trainer.n_gpus_per_node": trainer["n_gpus_per_node"],
        "trainer.nnodes": trainer["nnodes"],
        f"{_ROLLOUT}.tensor_model_parallel_size": rollout["tensor_model_parallel_size"],
    }


def divisions(config: Mapping[str, Any]) -> list[tuple[str, int, str, int]]:
    """What must be a multiple of what: name and value, name and value."""
    actor, rollout = _actor_and_rollout(config)
    mini, parallel = actor["ppo_mini_batch_size"], rollout["tensor_model_parallel_size"]
    per_node = config["trainer"]["n_gpus_per_node"]
    num_gpus = per_node * config["trainer"]["nnodes"]
    batch = config["data"]["train_batch_size"]
    return [
        ("data.train_batch_size", batch, "actor_rollout_ref.actor.ppo_mini_batch_size", mini),
        ("ppo_mini_batch_size * rollout.n", mini * rollout["n"], "the number of GPUs", num_gpus),
        ("the number of GPUs", num_gpus, "rollout.tensor_model_parallel_size", parallel),
        ("trainer.n_gpus_per_node", per_node, "rollout.tensor_model_parallel_size", min(parallel, per_node)),
    ]


def _actor_and_rollout(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]


def check_critic(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where the algorithm needs a critic and the configuration has none, or the other way round."""
    estimator, critic = config["algorithm"]["adv_estimator"], config["critic"]
    if estimator == "gae" and not critic["enable"]:
        raise ConfigError(
            "algorithm.adv_estimator=gae needs a critic, and critic.enable is "
            f"{str(critic['enable']).lower()}: choose algorithm=ppo, which has one"
        )
    if estimator != "gae" and critic["enable"]:
        raise ConfigError(
            f"critic.enable=true, but algorithm.adv_estimator={estimator} reads no values: choose algorithm=ppo, or "
            "set critic.enable=false"
        )


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(f"{name}={value} is not a multiple of {divisor_name}={divisor}: make it {nearest}")
