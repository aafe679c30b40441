"""Settings of `engine=verl` that could not act or work are refused before anything starts."""

from contextlib import nullcontext
from copy import deepcopy
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small_with_model
from support.gpus import give_gpus

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.preflight.gpu_checks import memory_error
from rgtrain.preflight.stock_verl_checks import check_separate_gpus, check_stock_verl, replaces_parts

ROLLOUT = "actor_rollout_ref.rollout"
MODE = "trainer.v1.trainer_mode"
FUNCTION = "reward.custom_reward_function.path"


@cache
def plain() -> dict[str, Any]:
    return small_with_model(Path("model"), Path("run"), "engine=verl")


def config(**changes: Any) -> RunConfig:
    """Return the configuration with changed values, whose keys have two underscores in place of dots."""
    changed = deepcopy(plain())
    for key, value in changes.items():
        *above, last = key.split("__")
        reduce(lambda node, name: node[name], above, changed)[last] = value
    return RunConfig.of(changed)


def changed(key: str, value: Any, **others: Any) -> RunConfig:
    return config(**{key.replace(".", "__"): value}, **others)


def test_the_engine_runs_as_composed():
    assert check_stock_verl(config()) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.train_files", "mine.parquet", "data.train_files is 'mine.parquet'.*set data.mixture"),
        ("data.custom_cls.name", "Mine", "data.custom_cls.name is 'Mine'"),
        ("data.filter_overlong_prompts", True, "set data.max_prompt_length"),
        ("data.tokenizer", "mine", "the model's folder has the tokenizer"),
        ("custom_reward_function.path", "mine.py", "custom_reward_function.path is 'mine.py'.* under reward"),
        ("reward_model.model.path", "org/judge", "reward_model.model.path is 'org/judge'.* under reward"),
        ("reward.sandbox_fusion.url", "http://sandbox", "set reward.scorer"),
        ("trainer.max_critic_ckpt_to_keep", 5, "set trainer.max_actor_ckpt_to_keep"),
        ("data.train_max_samples", 5, "set data.train_size or data.validation_size"),
        ("trainer.use_v1", False, "set trainer.use_v1=true"),
        (MODE, "async", "trainer.v1.trainer_mode is 'async'; .*colocate_async"),
        ("actor_rollout_ref.actor.strategy", "megatron", "strategy is 'megatron'; .*fsdp2"),
        ("actor_rollout_ref.actor.checkpoint.async_save", True, "async_save=false"),
        (f"{ROLLOUT}.name", "sglang", "the package sglang is not installed"),
        (f"{ROLLOUT}.name", "vlm", "did you mean 'vllm'"),
        ("actor_rollout_ref.model.lora_rank", 8, "set actor_rollout_ref.model.lora.merge=true"),
        (f"{ROLLOUT}.agent.num_workers", 0, "agent.num_workers is 0"),
        ("reward.num_workers", 0, "reward.num_workers is 0"),
        ("reward.reward_manager.name", "remote", "reward.reward_manager.name is 'remote'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_stock_verl(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (MODE, "colocate_async"),
        ("actor_rollout_ref.actor.strategy", "fsdp"),
        (f"{ROLLOUT}.multi_turn.enable", True),
        ("reward.reward_manager.name", "dapo"),
    ],
)
def test_features_of_verl_are_accepted(key, value):
    assert check_stock_verl(changed(key, value)) == []


def test_the_requirements_of_the_mode_separate_async_are_checked():
    with pytest.raises(ConfigError) as caught:
        check_stock_verl(changed(MODE, "separate_async"))
    for needed in ("set data.train_batch_size=32", "rollout.nnodes is 0", "set it to nccl", "needs GPUs"):
        assert needed in str(caught.value)


@pytest.mark.parametrize(("num_training", "fits"), [(3, True), (4, False)])
def test_separate_generation_needs_gpus_beside_those_of_training(monkeypatch, num_training, fits):
    give_gpus(monkeypatch, *[80.0] * 4)
    sizes = {"trainer__n_gpus_per_node": num_training, "trainer__device": "cuda"}
    sizes |= {"actor_rollout_ref__rollout__nnodes": 1, "actor_rollout_ref__rollout__n_gpus_per_node": 1}
    separate = changed(MODE, "separate_async", **sizes)
    with nullcontext() if fits else pytest.raises(ConfigError, match="needs 4 GPU.*1 for generation, but 4 are"):
        check_separate_gpus(separate)
    check_separate_gpus(changed(MODE, "sync", **sizes))


def test_separate_generation_on_mig_slices_is_refused(monkeypatch):
    give_gpus(monkeypatch, 20, 20, is_mig=True)
    sizes = {"trainer__n_gpus_per_node": 1, "trainer__device": "cuda"}
    sizes |= {"actor_rollout_ref__rollout__nnodes": 1, "actor_rollout_ref__rollout__n_gpus_per_node": 1}
    with pytest.raises(ConfigError, match="NCCL does not connect those; set it to sync"):
        check_separate_gpus(changed(MODE, "separate_async", **sizes))


def test_a_trainer_mode_of_another_module_is_accepted(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "mine")
    assert check_stock_verl(changed(MODE, "mine")) == []


def test_a_reward_that_replaces_the_parts_is_pointed_out():
    [warning] = check_stock_verl(changed(FUNCTION, "mine.py"))
    assert replaces_parts(config()) is None
    assert warning == f"{FUNCTION}=mine.py replaces reward.parts, which have no effect"
    _, second = check_stock_verl(changed(FUNCTION, "mine.py", data__curriculum__datasets={"gcd": {}}))
    assert "accuracy from acc" in second


def test_adapters_need_no_merging_on_gpus():
    assert check_stock_verl(changed("actor_rollout_ref.model.lora_rank", 8, trainer__device="cuda")) == []
    merged = {"actor_rollout_ref__model__lora__merge": True}
    assert check_stock_verl(changed("actor_rollout_ref.model.lora_rank", 8, **merged)) == []


def test_the_requirements_of_sequence_parallelism_are_checked():
    key = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"
    with pytest.raises(ConfigError) as caught:
        check_stock_verl(changed(key, 2))
    for needed in ("does not divide the 1 GPU", "use_remove_padding=true; set it too", "needs the package flash-attn"):
        assert needed in str(caught.value)


def test_memory_is_estimated_for_the_fast_engine_only(tiny_model):
    sizes = {"hardware__gpu_memory_gb": 0.001, "actor_rollout_ref__model__path": str(tiny_model)}
    assert "will not fit" in memory_error(changed("trainer.device", "cuda", engine="fast", **sizes))
    assert memory_error(changed("trainer.device", "cuda", **sizes)) is None


def test_the_fast_engine_is_not_checked_here():
    assert check_stock_verl(changed("data.train_files", "mine.parquet", engine="fast")) == []
