"""The token budget of a critic's micro-batches counts the padding."""

import random

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from rgtrain.training.update.padded_batches import COUNTS_PADDING, counting_padding, split_by_length, split_further


@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_occurs_once_and_padded_parts_fit_the_budget(seed):
    lengths = [random.Random(seed).randint(1, 1000) for _ in range(200)]
    parts = split_by_length(lengths, max_tokens=4000)
    assert sorted(number for part in parts for number in part) == list(range(200))
    padded = [len(part) * max(lengths[number] for number in part) for part in parts]
    assert max(padded) <= 4000
    # Sequences of similar lengths are together, so little is padding.
    assert sum(padded) < 1.2 * sum(lengths)


def test_a_sequence_over_the_budget_is_alone():
    assert split_by_length([5, 100, 5], max_tokens=50) == [[1], [0, 2]]


def test_ranks_with_fewer_parts_split_theirs():
    assert split_further([[1], [0, 2, 3]], num_parts=3) == [[1], [0], [2, 3]]
    assert split_further([[0], [1]], num_parts=3) == [[0], [1], []]


def test_only_a_batch_that_requests_it_counts_padding():
    ids = torch.nested.nested_tensor([torch.arange(n) for n in (2, 9, 3)], layout=torch.jagged)
    data = TensorDict({"input_ids": ids}, batch_size=3)
    tu.assign_non_tensor(data, max_token_len_per_gpu=10)
    prepare = counting_padding(lambda data, **options: "original")
    assert prepare(data) == "original"
    tu.assign_non_tensor(data, **{COUNTS_PADDING: True})
    micro_batches, indices = prepare(data)
    assert indices == [[1], [2, 0]]
    assert [batch["input_ids"].offsets().diff().tolist() for batch in micro_batches] == [[9], [3, 2]]
