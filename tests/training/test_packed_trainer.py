"""Advantages and metrics from packed columns equal verl's, for every estimator that is computed in this way."""

import math
from types import SimpleNamespace

import pytest
import torch
import transfer_queue
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from rgtrain.problems.group_rewards import CompletionReward
from rgtrain.training import packed_trainer
from rgtrain.training.packed_trainer import PackedTrainer
from rgtrain.training.rollout.group_rollout import _samples
from rgtrain.training.rollout.groups import Group
from rgtrain.training.rollout.packed_columns import PackedColumn
from rgtrain.training.rollout.sample_store import SampleStore

# The sizes of the groups, whose samples have these rewards in turn. Equal rewards have no deviation.
GROUP_SIZES = (8, 1, 3, 8, 2, 5)
REWARDS = {2: [0.1] * 3, 3: [1.0, 0.0, 0.25, 0.7] * 2}
PUT = ("kv_batch_put", "kv_batch_get", "kv_list", "kv_clear")


@pytest.fixture
def store(monkeypatch) -> SampleStore:
    store = SampleStore()
    monkeypatch.setattr(packed_trainer, "STORE", store)
    for name in PUT:
        monkeypatch.setattr(transfer_queue, name, getattr(store, name))
    return store


def filled(store: SampleStore, *, fills_up: bool = False) -> KVBatchMeta:
    """Put random groups into the store, and return the batch with its samples in random order."""
    torch.manual_seed(1)
    tags = {}
    for number, size in enumerate(GROUP_SIZES):
        lengths = torch.randint(1, 12, (size,)).tolist()
        group = Group(
            f"u{number}",
            responses=[torch.randint(50, (length,)).tolist() for length in lengths],
            log_probs=[-torch.rand(length).numpy() for length in lengths],
            version=number,
        )
        rewards = [
            CompletionReward(reward, {"acc": reward}, None) for reward in REWARDS.get(number, torch.rand(size).tolist())
        ]
        extra_info = dict.fromkeys(("digest", "level", "judged_whole", "num_held_out", "num_too_long"), 0)
        prompt_ids = list(range(number + 1))
        row = {"uid": f"u{number}", "data_source": "gcd", "reward_model": {}}
        samples, of_group = _samples(
            row | {"extra_info": extra_info | {"prompt_ids": prompt_ids}}, group, rewards, step=9
        )
        store.put("train", samples, of_group)
        tags |= of_group
    keys = [list(tags)[row] for row in torch.randperm(len(tags)).tolist()]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[tags[key] for key in keys])
    if fills_up:
        batch = upsample_batch_to_divisible_size(batch, 10, eos_token_id=1)
    lengths = store.columns("train", batch.keys, ["responses"])["responses"].lengths
    for name in ("old_log_probs", "ref_log_prob", "values"):
        column = PackedColumn("tokens", torch.randn(int(lengths.sum())), lengths, torch.float32)
        store.put_columns("train", batch.keys, {name: column})
    return batch


def trainer_of(kind: type, *, estimator: str, kl_reward: bool = False, gamma: float = 1.0, **algorithm):
    trainer = kind.__new__(kind)
    settings = {
        "adv_estimator": estimator,
        "use_kl_in_reward": kl_reward,
        "kl_penalty": "kl",
        "gamma": gamma,
        "lam": 0.9,
    }
    rollout = {"n": 8}
    trainer.config = OmegaConf.create(
        {
            "algorithm": {**settings, "rollout_correction": {"bypass_mode": True}, **algorithm},
            "actor_rollout_ref": {"rollout": rollout, "model": {}},
        }
    )
    trainer.kl_ctrl_in_reward = core_algos.AdaptiveKLController(init_kl_coef=0.1, target_kl=0.5, horizon=100)
    trainer.use_critic = estimator == "gae"
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 2)
    trainer._rollout_moe_lb_metrics_accumulator = None
    return trainer


CASES = [
    {"estimator": "grpo"},
    {"estimator": "grpo", "norm_adv_by_std_in_grpo": False},
    {"estimator": "grpo", "kl_reward": True},
    {"estimator": "rloo"},
    {"estimator": "rloo", "kl_reward": True},
    {"estimator": "reinforce_plus_plus"},
    {"estimator": "reinforce_plus_plus", "kl_reward": True, "gamma": 0.95},
    {"estimator": "gae", "kl_reward": True},
    {"estimator": "gae", "gamma": 0.95},
    # verl's own functions compute these.
    {"estimator": "opo"},
    {"estimator": "grpo", "rollout_correction": {"bypass_mode": False}},
]


@pytest.mark.parametrize("fills_up", [False, True], ids=["full", "filled up"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_advantages_and_metrics_equal_those_of_verl(store, case, fills_up):
    found = []
    for kind in (PPOTrainerSync, PackedTrainer):
        store.kv_clear(list(store.kv_list("train").get("train", {})), "train")
        batch, metrics = filled(store, fills_up=fills_up), {}
        assert len(batch) == (30 if fills_up else 27)
        trainer = trainer_of(kind, **case)
        batch = trainer._compute_advantage(batch, metrics)
        trainer._compute_metrics(batch, metrics, {"step": 2.0, "gen": 1.0, "adv": 0.5}, global_steps=9, epoch=0)
        names = ["advantages", "returns", "token_level_rewards", "response_mask"]
        data = store.kv_batch_get(batch.keys, "train", names)
        found.append((data, metrics, trainer.kl_ctrl_in_reward.value))
    (theirs, their_metrics, their_coefficient), (ours, our_metrics, our_coefficient) = found
    assert set(theirs.keys()) == set(ours.keys()) >= {"advantages", "returns"}
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name].values(), expected.values(), atol=1e-6, rtol=1e-5, equal_nan=True)
    assert our_metrics.keys() == their_metrics.keys()
    for name, value in their_metrics.items():
        assert our_metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name
    assert math.isclose(our_coefficient, their_coefficient, rel_tol=1e-6)


def test_an_outcome_reward_is_computed_without_a_value_per_token(store):
    batch = filled(store)
    trainer_of(PackedTrainer, estimator="grpo")._compute_advantage(batch, {})
    columns = store.columns("train", batch.keys, ["advantages", "returns"])
    assert columns["advantages"] is columns["returns"]
    assert columns["advantages"].form == "constant"
