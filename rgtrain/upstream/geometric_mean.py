"""The scale of verl's loss `geo_mean` over micro-batches and ranks."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor


def over_the_mini_batch(original: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    """Wrap verl's loss so that micro-batches and ranks add up to its mean over the sequences of the mini-batch.

    Args:
        original: verl's loss, which returns the mean over the sequences of a micro-batch.

    Returns:
        The loss to use.
    """

    @wraps(original)
    def compute_policy_loss_geo_mean(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        loss, metrics = original(*arguments, **options)
        info, num_sequences = options["config"].global_batch_info, len(options["response_mask"])
        # Gradients are summed over micro-batches, and averaged over ranks.
        return loss * num_sequences * info["dp_size"] / info["global_batch_size"], metrics

    return compute_policy_loss_geo_mean
