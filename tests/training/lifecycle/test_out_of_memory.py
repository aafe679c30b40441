"""After a run ran out of memory, the report names the keys to change."""

from pathlib import Path

import pytest
from support.experiments import small_run

from rgtrain.training.lifecycle.out_of_memory import memory_hint

CONFIG = small_run(
    Path("unused"),
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384",
    "actor_rollout_ref.model.enable_gradient_checkpointing=false",
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.5",
    "actor_rollout_ref.rollout.free_cache_engine=false",
)
TORCH = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def test_an_update_that_does_not_fit_is_advised_to_use_fewer_tokens():
    hint = memory_hint(f"engine.py, line 3\n{TORCH}", CONFIG)
    assert "actor_rollout_ref.actor.ppo_max_token_len_per_gpu (now 16384, try 8192)" in hint
    assert "enable_gradient_checkpointing=true" in hint and "free_cache_engine=true" in hint


@pytest.mark.parametrize(
    "failure",
    [
        f'File "rgtrain/training/rollout/vllm_rollout.py", line 40\n{TORCH}',
        "ValueError: No available memory for the cache blocks. Try increasing gpu_memory_utilization",
    ],
)
def test_vllm_that_does_not_fit_is_advised_to_change_its_memory_share(failure):
    assert "rollout.gpu_memory_utilization (now 0.5)" in memory_hint(failure, CONFIG)


def test_other_failures_get_no_hint():
    assert memory_hint("ValueError: no such thing", CONFIG) is None
