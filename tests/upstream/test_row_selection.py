"""Samples of a batch are selected as verl selects them, without splitting the batch into all of its rows."""

import pytest
import torch
from tensordict.tensorclass import NonTensorStack
from verl.utils import tensordict_utils as tu

from rgtrain.upstream.row_selection import selecting_rows


def nested(*lengths: int, sizes: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.rand(length, *sizes) for length in lengths], layout=torch.jagged)


@pytest.fixture(scope="module")
def batch():
    fields = {
        "responses": nested(3, 1, 4, 2),
        "number": torch.arange(4),
        "routed_experts": nested(3, 1, 4, 2, sizes=(2, 2)),
        "uid": NonTensorStack("a", "b", "c", "d"),
        "prompts": nested(2, 2, 5, 1),
    }
    return tu.get_tensordict(fields, {"temperature": 0.7})


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 2], [3], [2, 0, 3], torch.tensor([3, 1])])
def test_selected_rows_equal_those_of_verl(batch, rows):
    ours, verls = selecting_rows(tu.index_select_tensor_dict)(batch, rows), tu.index_select_tensor_dict(batch, rows)
    assert list(ours.keys()) == list(verls.keys())
    assert ours.batch_size == verls.batch_size
    for name in ("responses", "prompts", "routed_experts"):
        pairs = list(zip(ours[name].unbind(), verls[name].unbind(), strict=True))
        assert all(torch.equal(one, other) for one, other in pairs)
    for name in ("responses", "prompts"):
        assert ours[name]._max_seqlen == verls[name]._max_seqlen
        assert torch.equal(*(torch.nested.to_padded_tensor(one[name], 0.0) for one in (ours, verls)))
    assert torch.equal(ours["number"], verls["number"])
    assert (list(ours["uid"]), ours["temperature"]) == (list(verls["uid"]), 0.7)


def test_no_rows_and_no_batch_are_left_to_verl(batch):
    assert selecting_rows(tu.index_select_tensor_dict)(None, [0]) is None
