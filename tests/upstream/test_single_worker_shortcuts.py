"""With one worker, a batch is divided at once, with the same result as verl's functions."""

import pytest
import torch
from tensordict import TensorDict
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions
from verl.utils.tensordict_utils import chunk_tensordict

from rgtrain.upstream.single_worker_shortcuts import balanced_partitions, chunks


def never(*arguments, **options):
    raise AssertionError("verl's own function is not needed")


def batch(size: int) -> TensorDict:
    rows = [torch.arange(length + 1) for length in range(size)]
    return TensorDict({"input_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=size)


def test_a_single_worker_gets_all_samples_in_order():
    workloads = [7, 1, 4, 4]
    ours = balanced_partitions(never)(workloads, k_partitions=1, equal_size=True)
    assert ours == [[0, 1, 2, 3]]
    assert ours == get_seqlen_balanced_partitions(workloads, k_partitions=1, equal_size=True)


def test_several_workers_get_the_partition_of_verl():
    workloads = [7, 1, 4, 4]
    ours = balanced_partitions(get_seqlen_balanced_partitions)(workloads, k_partitions=2, equal_size=True)
    assert ours == get_seqlen_balanced_partitions(workloads, k_partitions=2, equal_size=True)


def test_the_batch_of_a_single_worker_is_the_whole_batch():
    whole = batch(4)
    [part] = chunks(never)(whole, 1)
    assert part is whole


@pytest.mark.parametrize("num_parts", [2, 4])
def test_several_workers_get_the_same_batches_as_from_verl(num_parts):
    whole = batch(4)
    ours, original = chunks(chunk_tensordict)(whole, num_parts), chunk_tensordict(whole, num_parts)
    for one, other in zip(ours, original, strict=True):
        assert torch.equal(one["input_ids"].values(), other["input_ids"].values())
