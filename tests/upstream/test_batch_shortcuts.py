"""The faster functions on batches return the same as those of verl."""

import pytest
import torch
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.workers.utils import padding

from rgtrain.upstream import batch_shortcuts

PROMPTS, RESPONSES = [3, 1, 2, 2], [1, 4, 2, 5]


def nested(lengths: list[int], *further: int) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.randn(length, *further) for length in lengths], layout=torch.jagged)


def equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return (
        ours.values().equal(theirs.values())
        and ours.offsets().equal(theirs.offsets())
        and ours.to_padded_tensor(0).equal(theirs.to_padded_tensor(0))
    )


def test_responses_are_cut_out_of_sequences():
    whole, mask = nested([sum(pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]), nested(RESPONSES)
    assert equal(batch_shortcuts.response_from_nested(whole, mask), padding.response_from_nested(whole, mask))


def test_padding_is_removed():
    padded, mask = torch.randn(4, 7), nested(RESPONSES)
    assert equal(batch_shortcuts.response_to_nested(padded, mask), padding.response_to_nested(padded, mask))


@pytest.mark.parametrize("further", [(), (2,), (2, 3)], ids=str)
def test_nested_tensors_are_joined(further):
    tensors = [nested(RESPONSES, *further), nested([2], *further), nested(PROMPTS, *further)]
    join = batch_shortcuts.joined_nested(tu.concat_nested_tensors)
    assert join(tensors).values().equal(torch.cat([tensor.values() for tensor in tensors]))
    assert [len(row) for row in join(tensors).unbind()] == [*RESPONSES, 2, *PROMPTS]
    if not further:
        assert equal(join(tensors), tu.concat_nested_tensors(tensors))
    assert join(tensors[:1]) is tensors[0]


def test_tags_of_a_batch_are_its_own(monkeypatch):
    monkeypatch.setattr(KVBatchMeta, "__post_init__", batch_shortcuts.check_metadata)
    tags = [{"seq_len": 1}, {"seq_len": 2}]
    batch = KVBatchMeta(keys=["a", "b"], tags=tags, partition_id="train")
    batch.tags[0]["seq_len"] = 7
    batch.extra_info["temperature"] = 1
    assert tags[0] == {"seq_len": 1} and len(batch) == batch.size == 2
    with pytest.raises(ValueError, match="duplicated keys"):
        KVBatchMeta(keys=["a", "a"], tags=tags)
    with pytest.raises(ValueError, match="same length, but got 1 and 2"):
        KVBatchMeta(keys=["a"], tags=tags)
