"""Settings that depend on the engine have verl's own values with `engine=verl`, unless the user sets them."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.experiments import composed

from rgtrain.config.composition import verl_tree
from rgtrain.paths import CONFIGS

GROUP_ROLLOUT = "rgtrain.training.rollout.group_rollout.GroupRollout"
MANAGERS = "pkg://rgtrain.training.stock_verl.reward_managers"
MANAGER_CLASS = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
EXTENSION = "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls"


@cache
def value(key: str, *words: str) -> Any:
    return OmegaConf.select(configuration(*words), key)


@cache
def configuration(*words: str) -> Any:
    return composed("hardware=cpu", *words)


@pytest.mark.parametrize(
    ("key", "fast", "stock"),
    [
        (MANAGER_CLASS, GROUP_ROLLOUT, None),
        (EXTENSION, None, "rgtrain.upstream.cpu_server_worker.CpuServerWorker"),
        ("actor_rollout_ref.model.external_lib", "rgtrain.upstream.in_worker", "rgtrain.upstream.in_stock_worker"),
        ("actor_rollout_ref.rollout.agent.num_workers", 8, 1),
        ("reward.num_workers", 0, 1),
        ("reward.reward_manager.source", "register", "importlib"),
        ("reward.reward_manager.module.path", None, MANAGERS),
        ("reward.reward_manager.name", "naive", "naive"),
    ],
)
def test_a_setting_depends_on_the_engine(key, fast, stock):
    assert value(key) == fast
    assert value(key, "engine=verl") == stock


def test_on_gpus_the_numbers_of_processes_are_those_of_verl():
    on_gpus, tree = composed("hardware=gpu", "engine=verl"), verl_tree()
    for key in ("reward.num_workers", "actor_rollout_ref.rollout.agent.num_workers"):
        assert OmegaConf.select(on_gpus, key) == OmegaConf.select(tree, key)


def test_a_value_of_the_user_wins():
    words = ("engine=verl", "reward.num_workers=3", "reward.reward_manager.source=register")
    words += (f"{MANAGER_CLASS}=mine.Manager", f"{EXTENSION}=mine.Extension")
    assert value("reward.num_workers", *words) == 3
    assert value("reward.reward_manager.source", *words) == "register"
    assert value(MANAGER_CLASS, *words) == "mine.Manager"
    assert value(EXTENSION, *words) == "mine.Extension"


def test_adapters_are_merged_for_the_fast_engine_only():
    model = "actor_rollout_ref.model.lora.merge"
    assert OmegaConf.select(composed("+model@_global_=lora"), model) is True
    assert OmegaConf.select(composed("+model@_global_=lora", "engine=verl"), model) is False


def test_every_setting_that_depends_on_the_engine_is_of_the_documented_form():
    files = [path for path in Path(CONFIGS).rglob("*.yaml") if "for_engine:" in path.read_text()]
    assert {path.name for path in files} == {"base.yaml", "cpu.yaml", "gpu.yaml", "lora.yaml"}
