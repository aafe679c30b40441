"""Faster versions of functions of verl and TransferQueue that handle batches one sample at a time."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


def jagged(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the jagged tensor of rows that lie one after the other.

    Args:
        values: [tokens]. The rows, perhaps with further dimensions.
        lengths: [rows]. The length of each row.
    """
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    # The longest length is stored. Otherwise rows would be padded to the total length of all rows.
    shortest, longest = int(lengths.min()), int(lengths.max())
    return torch.nested.nested_tensor_from_jagged(values, offsets=offsets, min_seqlen=shortest, max_seqlen=longest)


def row_lengths(nested: Any) -> Tensor:
    """Return the length of each row of a jagged tensor, [rows]."""
    return nested.offsets().diff()


def joined_nested(original: Callable[[list[Tensor]], Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """Wrap verl's concatenation of jagged tensors so that it joins their memory instead of their rows."""

    def concat_nested_tensors(tensors: list[Tensor]) -> Tensor:
        if any(getattr(tensor, "_ragged_idx", 1) != 1 for tensor in tensors):
            return original(tensors)
        if len(tensors) == 1:
            return tensors[0]
        lengths = torch.cat([row_lengths(tensor) for tensor in tensors])
        return jagged(torch.cat([tensor.values() for tensor in tensors]), lengths)

    return concat_nested_tensors


def response_from_nested(tensor: Tensor, response_mask: Tensor) -> Tensor:
    """Cut the values of the responses out of those of whole sequences, as verl's function of this name.

    Args:
        tensor: Jagged, with one value per token of each prompt and response. The value at a token is that of the next.
        response_mask: Jagged, with the lengths of the responses.

    Returns:
        Jagged, with the values of the responses' tokens.
    """
    lengths = row_lengths(response_mask)
    values, ends = tensor.values(), accumulate(row_lengths(tensor).tolist())
    parts = [values[end - 1 - length : end - 1] for end, length in zip(ends, lengths.tolist(), strict=True)]
    return jagged(torch.cat(parts), lengths)


def response_to_nested(tensor: Tensor, response_mask: Tensor) -> Tensor:
    """Remove the padding of responses, as verl's function of this name.

    Args:
        tensor: [rows, tokens], padded on the right.
        response_mask: Jagged, with the lengths of the responses.

    Returns:
        Jagged, with the values of the responses' tokens.
    """
    lengths = row_lengths(response_mask)
    parts = [row[:length] for row, length in zip(tensor, lengths.tolist(), strict=True)]
    return jagged(torch.cat(parts), lengths)


def check_metadata(batch: Any) -> None:
    """Check the metadata of a batch as TransferQueue does, and copy its tags, which hold only numbers and texts.

    Args:
        batch: A new KVBatchMeta.

    Raises:
        ValueError: Keys or fields are not unique, or there is not one tag per key.
    """
    if len(batch.keys) != len(batch.tags):
        raise ValueError(f"keys and tags must have same length, but got {len(batch.keys)} and {len(batch.tags)}")
    for name, values in (("keys", batch.keys), ("fields", batch.fields or ())):
        if len(values) != len(set(values)):
            raise ValueError(f"Got duplicated {name}.")
    batch.tags = [dict(tag) for tag in batch.tags]
    batch.extra_info = dict(batch.extra_info or {})
    object.__setattr__(batch, "_size", len(batch.keys))
