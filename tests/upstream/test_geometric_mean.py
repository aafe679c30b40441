"""The loss `geo_mean` does not depend on the division into micro-batches."""

import pytest
import torch
from verl.trainer.ppo.core_algos import compute_policy_loss_geo_mean
from verl.workers.config import FSDPActorConfig

from rgtrain.upstream.geometric_mean import over_the_mini_batch


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 1, 3)])
def test_micro_batches_add_up_to_the_mean_over_sequences(sizes):
    generator = torch.Generator().manual_seed(0)
    old, new, advantages = (torch.randn(6, 4, generator=generator) for _ in range(3))
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, use_dynamic_bsz=True)
    config.global_batch_info.update(dp_size=1, global_batch_size=6)
    loss = over_the_mini_batch(compute_policy_loss_geo_mean)
    found, start = 0.0, 0
    for size in sizes:
        rows = slice(start, start + size)
        found += loss(
            old_log_prob=old[rows],
            log_prob=new[rows],
            advantages=advantages[rows],
            response_mask=torch.ones(size, 4),
            loss_agg_mode="token-mean",
            config=config,
        )[0].item()
        start += size
    whole, _ = compute_policy_loss_geo_mean(old, new, advantages, torch.ones(6, 4), config=config)
    assert found == pytest.approx(whole.item(), rel=1e-5)
