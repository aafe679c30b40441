"""Select samples of a batch without splitting its nested tensors into all of their rows."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from rgtrain.upstream.batch_shortcuts import jagged

_Select = Callable[[Any, torch.Tensor], Any]


def selecting_rows(original: _Select) -> _Select:
    """Wrap verl's `index_select_tensor_dict`, which an update calls for each micro-batch.

    verl makes a tensor of each row of the whole batch, for each field and micro-batch.

    Returns:
        The function to use, with verl's arguments and result.
    """

    def index_select_tensor_dict(batch: Any, indices: Any) -> Any:
        rows = torch.as_tensor(indices)
        nested = {} if batch is None else {name: value for name, value in batch.items() if _has_plain_rows(value)}
        if not nested or not len(rows):
            return original(batch, rows)
        fields = dict(original(batch.exclude(*nested), rows).items())
        fields |= {name: _select(value, rows.tolist()) for name, value in nested.items()}
        return TensorDict({name: fields[name] for name, _ in batch.items()}, batch_size=len(rows))

    return index_select_tensor_dict


def _has_plain_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_nested and value.layout is torch.jagged and value.dim() == 2


def _select(nested: Any, rows: list[int]) -> torch.Tensor:
    """Return rows of a nested tensor. Consecutive rows share memory with it."""
    values, starts = nested.values(), nested.offsets().tolist()
    lengths = [starts[row + 1] - starts[row] for row in rows]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        selected = values[starts[rows[0]] : starts[rows[-1] + 1]]
    else:
        selected = torch.cat([values[starts[row] : starts[row + 1]] for row in rows])
    return jagged(selected, torch.tensor(lengths, device=values.device))
