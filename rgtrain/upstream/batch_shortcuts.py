"""Faster versions of functions of verl and TransferQueue that handle batches one sample at a time."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from tensordict import TensorDict
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


def selected_rows(
    original: Callable[[TensorDict, Tensor], TensorDict],
) -> Callable[[TensorDict, Tensor | list[int]], TensorDict]:
    """Wrap verl's selection of rows so that consecutive rows of jagged tensors are copied together."""

    def index_select_tensor_dict(batch: TensorDict, indices: Tensor | list[int]) -> TensorDict:
        rows = torch.as_tensor(indices)
        nested = {} if batch is None else {name: value for name, value in batch.items() if _is_jagged(value)}
        if not nested or not len(rows):
            return original(batch, rows)
        selected = original(batch.exclude(*nested), rows)
        for name, value in nested.items():
            selected[name] = _selected(value, rows)
        return selected.select(*batch.keys())

    return index_select_tensor_dict


def _is_jagged(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_nested and getattr(value, "_ragged_idx", 1) == 1


def _selected(nested: Tensor, rows: Tensor) -> Tensor:
    lengths = row_lengths(nested)
    values, bounds = nested.values(), [0, *accumulate(lengths.tolist())]
    breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
    firsts = rows[torch.nn.functional.pad(breaks, (1, 0))].tolist()
    lasts = rows[torch.cat([breaks, torch.tensor([len(rows)])]) - 1].tolist()
    parts = [values[bounds[first] : bounds[last + 1]] for first, last in zip(firsts, lasts, strict=True)]
    return jagged(torch.cat(parts), lengths[rows.to(values.device)])


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
