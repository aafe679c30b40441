"""Batch sizes that do not divide each other, and estimators without the critic or groups they need, are refused."""

import pytest
from support.experiments import small_with_model
from support.preflights import check_plain

from rgtrain.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train_batch_size=12", "train_batch_size=12 is not a multiple of .*=8; set it to 8 or 16"),
        (
            "actor_rollout_ref.rollout.n=1",
            "rollout.n=1 is too small, because grpo compares the completions .* set it to 2 or more",
        ),
        (
            "trainer.n_gpus_per_node=65",
            r"ppo_mini_batch_size \* rollout.n=64 is not a multiple of the number of GPUs=65",
        ),
        (
            "trainer.n_gpus_per_node=4 actor_rollout_ref.actor.fsdp_config.fsdp_size=3",
            "the number of GPUs=4 is not a multiple of actor_rollout_ref.actor.fsdp_config.fsdp_size=3",
        ),
        (
            "trainer.n_gpus_per_node=4 actor_rollout_ref.ref.fsdp_config.fsdp_size=3",
            "the number of GPUs=4 is not a multiple of actor_rollout_ref.ref.fsdp_config.fsdp_size=3; set it to 3 or 6",
        ),
        (
            "trainer.n_gpus_per_node=4 algorithm=ppo critic.fsdp.fsdp_size=3",
            "the number of GPUs=4 is not a multiple of critic.fsdp.fsdp_size=3",
        ),
        ("algorithm.adv_estimator=gae", "gae needs a critic, but critic.enable is false; set algorithm=ppo"),
        ("critic.enable=true", "critic.enable=true, but algorithm.adv_estimator=grpo does not use a critic"),
    ],
)
def test_a_mistake_is_reported_with_its_fix(tiny_model, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *override.split()))


def test_the_number_of_gpus_need_not_divide_the_mini_batch(tiny_model, tmp_path):
    check_plain(small_with_model(tiny_model, tmp_path / "run", "trainer.n_gpus_per_node=3"))
