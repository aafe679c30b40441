"""Advice names the keys that make a run fit into the GPUs."""

from dataclasses import replace

import pytest
from support.memory_settings import SETTINGS

from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight.advice import advice
from rgtrain.preflight.memory import estimate
from rgtrain.preflight.sizes import ModelSize


@pytest.mark.parametrize(
    ("name", "gigabytes", "changes", "expected"),
    [
        ("qwen2.5-3b", 80, {"vllm_share": 0.6}, "gpu_memory_utilization=0."),
        ("qwen2.5-1.5b", 48, {"vllm_sleeps": False}, "free_cache_engine=true"),
        ("smollm2-135m", 80, {"checkpointing": False, "max_micro_batch_tokens": 262_144}, "enable_gradient_checkpoint"),
        ("qwen2.5-1.5b", 24, {}, "offload_policy=true"),
        ("qwen2.5-3b", 48, {"num_gpus": 2, "reshard": False, "sync_once": True, "vllm_share": 0.4}, "use_no_sync"),
        ("qwen2.5-7b", 80, {"num_gpus": 8, "num_machines": 4, "fsdp_size": 2}, "fsdp_size=-1"),
        ("qwen2.5-7b", 6, {}, "more GPUs, larger GPUs (hardware=CHOICE) or a smaller model"),
    ],
)
def test_advice_names_keys_that_make_it_fit(name, gigabytes, changes, expected):
    size, settings = ModelSize.of(SHAPES[name]), replace(SETTINGS, **changes)
    assert estimate(size, settings, gpu_bytes=gigabytes * 1e9).peak > gigabytes * 1e9
    assert expected in " ".join(advice(size, settings, gpu_bytes=gigabytes * 1e9))
