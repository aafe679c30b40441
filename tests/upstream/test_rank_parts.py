"""A divided batch reaches verl's worker groups as it is."""

import pytest
import torch
from tensordict import TensorDict
from verl.protocol import BatchData
from verl.utils import tensordict_utils as tu

from rgtrain.upstream.rank_parts import RankParts, chunkable_types


def batch(size: int) -> TensorDict:
    rows = [torch.arange(length + 1) for length in range(size)]
    return TensorDict({"input_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=size)


def test_ranks_get_their_parts_which_differ_in_size(monkeypatch):
    monkeypatch.setattr(BatchData, "_chunkable_types", chunkable_types(BatchData._chunkable_types))
    parts = RankParts([batch(3), batch(1)])
    assert BatchData(parts).is_chunkable()
    assert [len(part) for part in BatchData(parts).chunk(2)] == [3, 1]
    assert BatchData(batch(1)).is_chunkable()


def test_results_of_different_sizes_are_joined():
    results = [tu.get_tensordict({"log_probs": batch(size)["input_ids"]}, {"metrics": {"mfu": 0}}) for size in (3, 1)]
    joined = BatchData(results).concat()
    assert [row.tolist() for row in joined["log_probs"].unbind()] == [[0], [0, 1], [0, 1, 2], [0]]


def test_another_number_of_ranks_is_refused():
    with pytest.raises(ValueError, match="divided over 2 ranks, but there are 3"):
        RankParts([batch(1), batch(1)]).chunk(3)
