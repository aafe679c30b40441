"""A run that asks for more GPUs than the machine has, or for memory that vLLM cannot free, is refused."""

import pytest
from support.experiments import small_with_model
from support.preflights import check_plain

from rgtrain.errors import ConfigError


def test_a_run_that_asks_for_a_missing_gpu_is_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU is available; set hardware=cpu"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", "hardware=gpu"))


def test_memory_that_vllm_cannot_free_is_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"free_cache_engine=true .* but .*enable_sleep_mode=false; set both to true"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", "actor_rollout_ref.rollout.free_cache_engine=true"))
