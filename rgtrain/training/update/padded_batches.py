"""Micro-batches for a critic, whose forward pass pads every sequence to the longest of its micro-batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from rgtrain.training.update.mini_batches import select_micro_batches

# The key of a batch by which an engine requests micro-batches whose token budget counts padding.
COUNTS_PADDING = "token_budget_counts_padding"


def counting_padding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap verl's `prepare_micro_batches` so that the token budget counts padding if a batch requests it."""

    def prepare_micro_batches(data: TensorDict, **options: Any) -> Any:
        requested = tu.get_non_tensor_data(data=data, key=COUNTS_PADDING, default=False)
        return (_padded_micro_batches if requested else original)(data=data, **options)

    return prepare_micro_batches


def _padded_micro_batches(data: TensorDict, dp_group: Any = None, same_micro_num_in_dp: bool = True) -> Any:
    """Return micro-batches and the indices of their sequences, as verl's prepare_micro_batches does."""
    parts = split_by_length(data["input_ids"].offsets().diff().tolist(), max_tokens=int(data["max_token_len_per_gpu"]))
    if torch.distributed.is_initialized():
        # Ranks gather parameters together, so all run equally many micro-batches.
        agreed = torch.tensor(len(parts), device=get_device_id())
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX, group=dp_group)
        parts = split_further(parts, num_parts=int(agreed))
    return select_micro_batches(data, parts)


def split_by_length(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Split sequences into parts of similar lengths.

    Args:
        lengths: The number of tokens of each sequence.
        max_tokens: The maximum of a part's longest length times its number of sequences. A longer sequence is alone.

    Returns:
        The indices of the sequences of each part, the longest first.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    parts = []
    while order:
        size = max(1, max_tokens // max(1, lengths[order[0]]))
        parts.append(order[:size])
        order = order[size:]
    return parts


def split_further(parts: Sequence[list[int]], *, num_parts: int) -> list[list[int]]:
    """Halve the parts with the most sequences until there are `num_parts`. Those beyond one sequence each are empty."""
    parts = list(parts)
    while len(parts) < num_parts:
        most = max(range(len(parts)), key=lambda number: len(parts[number]))
        part = parts[most]
        if len(part) <= 1:
            parts.append([])
            continue
        parts[most : most + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts
