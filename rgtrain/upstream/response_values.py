"""Pad the values of responses for all sequences at once."""

import torch
from tensordict import TensorDict


def response_values(tensor: torch.Tensor, data: TensorDict) -> torch.Tensor:
    """Compute verl's `no_padding_2_padding` without waiting for the GPU at each sequence.

    Args:
        tensor: The values of all tokens of all sequences, as a nested tensor or concatenated, or those of responses as
            a nested tensor.
        data: The batch, with nested `input_ids` and `responses`.

    Returns:
        [sequences, longest response], padded with zeros on the right.
    """
    values = tensor.values() if tensor.is_nested else tensor
    # Every sequence also has a prompt.
    if tensor.is_nested and len(values) == len(data["responses"].values()):
        return torch.nested.to_padded_tensor(tensor, 0.0)
    lengths = data["responses"].offsets().diff()[:, None]
    positions = torch.arange(int(lengths.max()), device=values.device)
    firsts = data["input_ids"].offsets()[1:, None] - lengths - 1
    index = (firsts + positions).clamp(max=len(values) - 1)
    return torch.where(positions < lengths, values[index], 0)
