"""Settings of the algorithm and of sampling that would silently mean something else are refused."""

import math
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import verl
from omegaconf import OmegaConf
from support.experiments import project_experiment
from verl.protocol import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.config import omega_conf_to_dataclass

from rgtrain.config import catalogue
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.preflight.algorithm_checks import CONDITIONS, UNSUPPORTED_ESTIMATORS, check_algorithm

ACTOR, ROLLOUT, CORRECTION = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "algorithm.rollout_correction"
LOSS = f"{ACTOR}.policy_loss.loss_mode"


@cache
def quickstart(algorithm: str) -> Any:
    """Compose the quickstart with an algorithm once, because it takes a second."""
    words = [f"algorithm={algorithm}", f"{CORRECTION}.bypass_mode=false", "hardware=cpu"]
    return OmegaConf.create(plain_config(project_experiment("quickstart", *words)))


def checked(*changes: str, algorithm: str = "grpo_no_kl") -> list[str]:
    """Return the warnings of the quickstart with changed values. Values derived from them do not change."""
    config = quickstart(algorithm).copy()
    config.merge_with_dotlist(list(changes))
    return check_algorithm(RunConfig.of(plain_config(config)))


@pytest.mark.parametrize("algorithm", map(catalogue.name_of, catalogue.choices("algorithm")))
def test_no_choice_of_an_algorithm_is_refused_or_warned_about(algorithm):
    assert checked(algorithm=algorithm) == []


ERRORS = [
    ([f"{ROLLOUT}.top_p=0.95"], "rollout.top_p=0.95 is not supported in training, .*truncated.* set top_p=1.0 here"),
    (
        [f"{ROLLOUT}.top_k=50"],
        "rollout.top_k=50 is not supported in training, .* use .*val_kwargs.top_k for validation",
    ),
    ([f"{ROLLOUT}.temperature=0"], "rollout.temperature=0 makes all completions of a prompt equal"),
    ([f"{ROLLOUT}.logprobs_mode=raw_logprobs", f"{ROLLOUT}.temperature=0.7"], "set .*logprobs_mode=processed_logprobs"),
    ([f"{ROLLOUT}.logprobs_mode=raw_logits"], "rollout.logprobs_mode=raw_logits returns values before"),
    ([f"{ROLLOUT}.engine_kwargs.vllm.logits_processors=[a.b]"], "logits_processors changes the distribution"),
    (
        [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token"],
        r"rollout_is=token has no effect with .*bypass_mode=true, .*; set .*bypass_mode=false",
    ),
    (
        [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_rs=token_k1", f"{CORRECTION}.rollout_rs_threshold=2"],
        "rollout_rs=token_k1 has no effect with",
    ),
    ([f"{CORRECTION}.rollout_rs=token_k1"], "rollout_rs=token_k1 needs a threshold"),
    ([f"{CORRECTION}.rollout_is_threshold=3"], "rollout_is_threshold=3 has no effect, because .*rollout_is is null"),
    ([f"{LOSS}=bypass_mode"], "loss_mode=bypass_mode needs settings that only verl's former trainer passes on"),
    ([f"{LOSS}=dro"], "loss_mode=dro needs a coefficient"),
    (
        [f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm"],
        "divides by the longest response .* set .*loss_scale_factor=24",
    ),
    ([f"{ACTOR}.clip_ratio=0.1"], "clip_ratio=0.1 has no effect, because .*clip_ratio_low and .* take precedence"),
    (
        [f"{ACTOR}.kl_loss_coef=0.1"],
        r"kl_loss_coef=0.1 has no effect, because .*use_kl_loss is false; set .*or set .*=0.001",
    ),
    (["algorithm.kl_ctrl.type=adaptive"], "kl_ctrl.type=adaptive has no effect, because algorithm.use_kl_in_reward is"),
    (["algorithm.gamma=0.99"], "gamma=0.99 has no effect, because .*adv_estimator is not gae or reinforce_plus_plus"),
    (["algorithm.lam=0.95"], "lam=0.95 has no effect"),
    (
        ["algorithm.norm_adv_by_std_in_grpo=false", "algorithm.adv_estimator=grpo_vectorized"],
        "norm_adv_by_std_in_grpo=false has no effect, because .*adv_estimator is not grpo or grpo_passk",
    ),
    ([f"{ACTOR}.tau_pos=2"], "tau_pos=2 has no effect, because .*loss_mode is not sapo"),
    ([f"{ACTOR}.clip_ratio_c=4", f"{LOSS}=gspo"], "clip_ratio_c=4 has no effect"),
    (
        ["trainer.critic_warmup=5"],
        "critic_warmup=5 leaves the policy untrained before that step, but grpo has no critic",
    ),
    ([f"{ROLLOUT}.max_model_len=400"], "max_model_len=400 would cut responses, .* set it to null or to 408 or more"),
    (["algorithm.adv_estimator=remax"], "adv_estimator=remax needs the reward of a greedy completion per prompt"),
    (
        ["algorithm.adv_estimator=rloo_vectorized", f"{ROLLOUT}.n=1"],
        "rollout.n=1 is too small, because rloo_vectorized",
    ),
    (["algorithm.filter_groups.enable=true", f"{ROLLOUT}.n=1"], "filter_groups drops groups .* set .*n to 2 or more"),
    ([f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_type=full"], "kl_loss_type=full needs the logits of all tokens"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS, ids=[changes[-1] for changes, _ in ERRORS])
def test_a_combination_without_its_meaning_is_refused_with_the_fix(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(*changes)
    # Other trainers of verl support some of them.
    assert any(checked(*changes, "engine=verl"))


def test_a_clipping_range_below_the_rounding_of_vllm_does_not_work_with_its_log_probs():
    with pytest.raises(ConfigError, match=r"larger than the clipping range \(0.0003 and 0.0004\)"):
        checked(f"{CORRECTION}.bypass_mode=true", algorithm="gspo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([f"{ACTOR}.use_kl_loss=true", "algorithm.use_kl_in_reward=true"], "counts twice"),
        ([f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=0"], "without using it"),
        ([f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_type=kl"], "kl_loss_type=kl has a gradient that is 0"),
        ([f"{LOSS}=gspo", f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"], "clips nothing"),
        ([f"{LOSS}=gspo", f"{ACTOR}.clip_ratio_low=3e-4", f"{ACTOR}.clip_ratio_high=4e-4"], "by their length"),
        ([f"{LOSS}=geo_mean"], "only entropy and KL follow .*loss_agg_mode=token-mean"),
        ([f"{ACTOR}.loss_scale_factor=100"], "loss_scale_factor=100 has no effect"),
        ([f"{LOSS}=kl_cov", f"{ACTOR}.clip_ratio_high=0.28"], "kl_cov does not clip ratios"),
        ([f"{LOSS}=gpg", f"{ACTOR}.ppo_epochs=3"], "only the first of 3 updates per step follows the policy"),
        ([f"{ROLLOUT}.val_kwargs.n=4"], "val_kwargs.n=4 validates with equal completions"),
        ([f"{CORRECTION}.bypass_mode=true", f"{ACTOR}.ppo_mini_batch_size=4"], "2 updates per step"),
        ([f"{CORRECTION}.bypass_mode=true", "algorithm.use_kl_in_reward=true"], "the KL in the reward"),
    ],
)
def test_a_doubtful_combination_warns(changes, message):
    [warning] = checked(*changes)
    assert re.search(message, warning)


def test_validation_may_use_any_sampling():
    assert checked(*(f"{ROLLOUT}.val_kwargs.{change}" for change in ("top_p=0.9", "top_k=20", "temperature=0"))) == []


def test_raw_log_probs_are_the_same_at_temperature_1():
    assert checked(f"{ROLLOUT}.logprobs_mode=raw_logprobs", f"{ROLLOUT}.temperature=1") == []


def test_a_used_setting_may_have_any_value():
    changes = ("clip_ratio=0.1", "clip_ratio_low=0.1", "kl_loss_coef=0.1", "use_kl_loss=true")
    assert checked(*(f"{ACTOR}.{change}" for change in changes)) == []
    assert checked("algorithm.gamma=0.9", algorithm="reinforce_plus_plus") == []
    assert checked(f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold=3") == []


def test_the_clipping_ratio_sets_both_bounds_that_verl_reads():
    actor = project_experiment("quickstart", f"{ACTOR}.clip_ratio=0.1", "hardware=cpu").actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.1, 0.1)


def test_the_defaults_of_conditional_settings_are_verls():
    tree = OmegaConf.load(Path(verl.__file__).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml")
    for key, (default, _) in CONDITIONS.items():
        assert OmegaConf.select(tree, key) == default, key


# The keys of two groups of samples, as in verl's trainer.
NUM_TOKENS = 5
KEYS = [f"{prompt}_{number}_0" for prompt in "ab" for number in range(4)]


def batch() -> DataProto:
    torch.manual_seed(0)
    names = ("rm_scores", "rollout_log_probs", "old_log_probs", "ref_log_prob", "values", "token_level_rewards")
    tensors = {name: torch.rand(len(KEYS), NUM_TOKENS) for name in names}
    tensors |= {"response_mask": torch.ones(len(KEYS), NUM_TOKENS), "token_level_scores": tensors["rm_scores"]}
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": np.array([key[0] for key in KEYS], dtype=object)})


@pytest.mark.parametrize("estimator", sorted(ADV_ESTIMATOR_REGISTRY))
def test_an_estimator_gets_its_inputs_or_is_refused_by_name(estimator):
    config = OmegaConf.to_container(quickstart("grpo_no_kl").algorithm) | {"adv_estimator": estimator}
    compute = partial(
        compute_advantage_for_multi_trajectories,
        batch_keys=KEYS,
        adv_estimator=estimator,
        config=omega_conf_to_dataclass(OmegaConf.create(config), AlgoConfig),
    )
    if estimator in UNSUPPORTED_ESTIMATORS:
        with pytest.raises((AssertionError, KeyError, TypeError)):
            compute(batch())
        with pytest.raises(ConfigError, match=f"adv_estimator={estimator} needs"):
            checked(f"algorithm.adv_estimator={estimator}")
    else:
        assert compute(batch()).batch["advantages"].abs().sum() > 0


def loss_of(name: str, *changes: str, **arguments: torch.Tensor | None) -> float:
    """Return a policy loss of verl on a batch whose ratios are far from 1."""
    config = quickstart("grpo_no_kl").copy()
    config.merge_with_dotlist([f"{LOSS}={name}", f"{ACTOR}.policy_loss.dro_beta=0.1", *changes])
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=40, global_batch_size=8, loss_scale_factor=None)
    tensors = batch().batch
    loss, _ = POLICY_LOSS_REGISTRY[name](
        old_log_prob=-tensors["old_log_probs"],
        log_prob=-tensors["ref_log_prob"],
        advantages=tensors["values"] - 0.5,
        response_mask=tensors["response_mask"],
        loss_agg_mode="token-mean",
        config=actor,
        **arguments,
    )
    return loss.item()


@pytest.mark.parametrize("loss", sorted(POLICY_LOSS_REGISTRY))
def test_a_policy_loss_weighs_by_the_rollout_and_clips_or_says_that_it_does_not(loss):
    settings = [f"{LOSS}={loss}", *([f"{ACTOR}.policy_loss.dro_beta=0.1"] if loss == "dro" else [])]
    if loss == "bypass_mode":
        with pytest.raises(ConfigError, match="loss_mode=bypass_mode needs"):
            checked(*settings)
        return
    plain = loss_of(loss)
    assert math.isfinite(plain)
    assert loss_of(loss, rollout_is_weights=batch().batch["rollout_log_probs"]) != plain
    narrow = [f"{ACTOR}.clip_ratio_low=0.01", f"{ACTOR}.clip_ratio_high=0.01"]
    is_unclipped = any("does not clip ratios" in warning for warning in checked(*settings, *narrow))
    assert (loss_of(loss, *narrow) == plain) == is_unclipped
