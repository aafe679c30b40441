"""The estimated seconds of a step rank memory settings as measurements and reasoning do."""

from dataclasses import replace

import pytest
from support.memory_settings import SETTINGS

from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight.duration import GPUS
from rgtrain.preflight.sizes import ModelSize
from rgtrain.preflight.step_seconds import step_seconds

SIZE = ModelSize.of(SHAPES["qwen2.5-1.5b"])
# 32 prompts of 272 tokens with 8 responses of 1,024 tokens each, on two GPUs.
BASE = replace(
    SETTINGS,
    num_gpus=2,
    prompt_tokens=272,
    checkpointing=False,
    reshard=False,
    sync_once=True,
    max_micro_batch_tokens=16_928,
    vllm_sleeps=False,
)


def seconds(*, size: ModelSize = SIZE, gpu: str = "H200", kv_cache_tokens: int = 10**6, **changes) -> float:
    return step_seconds(size, replace(BASE, **changes), gpu=GPUS[gpu], kv_cache_tokens=kv_cache_tokens)


@pytest.mark.parametrize(
    "slower",
    [
        {"checkpointing": True},
        {"checkpointing": True, "max_micro_batch_tokens": 33_856},
        {"max_micro_batch_tokens": 2048},
        {"sync_once": False},
        {"reshard": True, "sync_once": False},
        {"param_offload": True, "optimizer_offload": True},
        {"cpu_offload": True},
        {"vllm_sleeps": True},
        {"kv_cache_tokens": 50_000},
        {"mini_batch_size": 4},
        {"gpu": "A10"},
        {"size": ModelSize.of(SHAPES["qwen2.5-3b"])},
    ],
)
def test_settings_that_save_memory_take_longer(slower):
    assert seconds(**slower) > seconds()


def test_larger_micro_batches_save_no_time_once_computation_hides_launches():
    assert seconds(max_micro_batch_tokens=33_856) == seconds() < seconds(max_micro_batch_tokens=8464)


def test_copies_per_machine_save_traffic_over_the_network():
    assert seconds(num_gpus=16, num_machines=2, fsdp_size=8) < seconds(num_gpus=16, num_machines=2)
    # Within one machine, copies would only cost memory: the sum over GPUs takes as long as gathering and reducing.
    assert seconds(num_machines=2, num_gpus=16) > seconds(num_gpus=16)


def test_waking_takes_as_long_with_little_memory():
    waking = seconds(vllm_sleeps=True, vllm_share=0.6) - seconds(vllm_share=0.6)
    assert waking == pytest.approx(0.62)
    assert seconds(vllm_sleeps=True, vllm_share=0.1) - seconds(vllm_share=0.1) == waking


def test_adapters_take_less_time_than_full_training():
    assert seconds(lora_rank=32) < seconds()


@pytest.mark.parametrize(
    ("max_tokens", "shares_prompts", "expected"),
    # One of 16 groups per GPU has 272 + 8 x 1,024 tokens. Half a group has 272 + 4 x 1,024.
    [(16_928, True, 8), (16_927, True, 16), (8464, True, 16), (8463, True, 32), (4368, True, 32), (1296, False, 128)],
)
def test_groups_stay_whole_if_they_fit(max_tokens, shares_prompts, expected):
    settings = replace(BASE, max_micro_batch_tokens=max_tokens, shares_prompts=shares_prompts)
    assert settings.num_micro_batches == expected
