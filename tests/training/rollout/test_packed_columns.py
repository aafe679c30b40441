"""Compact columns hold the same rows as verl's, in any order of samples, and workers receive verl's form."""

import pickle
import random

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from rgtrain.training.rollout.packed_columns import (
    Gatherer,
    JoinedColumn,
    PackedBatch,
    PackedColumn,
    as_column,
    part,
    rows_of,
    runs,
)

LENGTHS = [3, 1, 4, 1, 5, 2]


def column(form: str, *, lengths=LENGTHS, dtype=torch.int64) -> PackedColumn:
    lengths = torch.tensor(lengths)
    values = torch.arange(int(lengths.sum()) if form == "tokens" else len(lengths), dtype=torch.int32) + 7
    return PackedColumn(form, values, lengths, dtype)


def all_columns() -> dict:
    prompts = column("tokens", lengths=[2, 2, 1, 3, 1, 1])
    responses = column("tokens")
    return {
        "prompts": prompts,
        "responses": responses,
        "response_mask": column("constant"),
        "rm_scores": column("last", dtype=torch.float32),
        "position_ids": PackedColumn.positions(prompts.lengths + responses.lengths),
        "input_ids": JoinedColumn(prompts, responses),
        "num_turns": torch.arange(6),
        "uid": list("aabbcc"),
    }


def as_lists(column) -> list:
    return [row.tolist() if isinstance(row, torch.Tensor) else row for row in rows_of(column)]


def test_every_form_is_expanded():
    columns = {name: as_lists(column) for name, column in all_columns().items()}
    assert columns["responses"][:3] == [[7, 8, 9], [10], [11, 12, 13, 14]]
    assert columns["response_mask"][:3] == [[7, 7, 7], [8], [9] * 4]
    assert columns["rm_scores"][:3] == [[0, 0, 7], [8], [0, 0, 0, 9]]
    assert columns["position_ids"][:2] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert columns["input_ids"][:2] == [[7, 8, 7, 8, 9], [9, 10, 10]]


@pytest.mark.parametrize("form", ["tokens", "constant", "last", "positions"])
def test_rows_are_summed_as_if_they_were_expanded(form):
    packed = column(form)
    assert packed.row_sums().tolist() == [sum(row) for row in as_lists(packed)]


@pytest.mark.parametrize("form", ["tokens", "constant", "last", "positions"])
def test_rows_have_the_bytes_of_expanded_ones(form):
    packed = column(form)
    assert packed.row_bytes() == [row.numpy().tobytes() for row in packed.rows()]


def test_only_equal_rows_have_equal_hashes():
    values = torch.tensor([1, 2, 1, 2, 1, 2, 0], dtype=torch.int32)
    first, second, third = PackedColumn("tokens", values, torch.tensor([2, 2, 3]), torch.int64).row_hashes()
    assert first == second != third


def test_an_empty_row_has_the_sum_zero():
    assert column("tokens", lengths=[1, 0, 2, 0]).row_sums().tolist() == [7, 0, 17, 0]


@pytest.mark.parametrize("seed", range(5))
def test_parts_have_the_rows_that_verl_would_select(seed):
    batch = PackedBatch(all_columns(), {"temperature": 0.5})
    rows = random.Random(seed).choices(range(6), k=seed + 1)
    expected = tu.index_select_tensor_dict(batch.tensordict(), rows)
    found = part(batch, rows)
    tu.assert_tensordict_eq(expected, found.tensordict())
    assert len(found) == len(rows)


def test_columns_of_equal_lengths_share_them():
    columns = all_columns()
    columns["mask"] = PackedColumn("constant", torch.ones(6), columns["responses"].lengths, torch.int64)
    columns["input_ids"] = JoinedColumn(columns["prompts"], columns["responses"])
    found = part(PackedBatch(columns), [4, 2, 3]).columns
    assert found["mask"].lengths is found["responses"].lengths
    assert found["input_ids"].first is found["prompts"]


def test_workers_receive_a_tensordict_of_verl():
    batch = PackedBatch(all_columns(), {"temperature": 0.5})
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    # Ray gives read-only memory to its workers.
    received = pickle.loads(sent, buffers=[memoryview(bytes(buffer)) for buffer in buffers])
    assert isinstance(received, TensorDict)
    tu.assert_tensordict_eq(received, batch.tensordict())
    received["responses"].values().add_(1)
    assert received["responses"].dtype == torch.int64


def test_columns_are_sent_in_compact_form_even_if_verl_has_read_them():
    tokens = column("tokens", lengths=[1000] * 4)
    columns = {"input_ids": JoinedColumn(tokens, tokens), "response_mask": column("constant", lengths=[1000] * 4)}
    batch = PackedBatch(columns)
    expanded = batch.tensordict()
    num_bytes = sum(values.values().nbytes for values in expanded.values())
    assert len(pickle.dumps(batch, protocol=5)) < num_bytes / 4


def test_a_part_has_the_rows_of_verls_part():
    batch = PackedBatch(all_columns())
    size = len(batch) // 3
    for number, theirs in enumerate(tu.chunk_tensordict(batch.tensordict(), 3)):
        tu.assert_tensordict_eq(part(batch, range(number * size, (number + 1) * size)).tensordict(), theirs)


def test_columns_of_different_forms_are_joined_as_tokens():
    joined = Gatherer().join([(column("constant"), 0, 2), (column("tokens"), 4, 6), (column("last"), 2, 3)])
    assert as_lists(joined) == [[7] * 3, [8], [16, 17, 18, 19, 20], [21, 22], [0, 0, 0, 9]]


def test_rows_that_verl_stacks_are_rows_of_equal_lengths():
    assert as_lists(as_column(torch.tensor([[1, 2], [3, 4]]))) == [[1, 2], [3, 4]]


def test_numbers_and_tensors_of_one_value_are_joined():
    assert as_lists(Gatherer().join([([5, 6], 0, 2), (torch.tensor([7]), 0, 1)])) == [5, 6, 7]


def test_runs_are_found_in_any_order():
    assert runs([4, 5, 6, 1, 2, 0, 9]) == [(4, 7), (1, 3), (0, 1), (9, 10)]
