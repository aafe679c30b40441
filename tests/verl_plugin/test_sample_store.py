"""The store that stands in for TransferQueue: what is put comes back as verl's trainer expects it."""

import pytest
import torch
import transfer_queue
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from rgtrain.verl_plugin.sample_store import SampleStore, StoredWorkers

LENGTHS = {"a_0_0": 3, "a_1_0": 1, "b_0_0": 5}


@pytest.fixture
def store() -> SampleStore:
    store = SampleStore()
    samples = {
        key: {"responses": torch.arange(length), "num_turns": torch.tensor(2), "uid": key[0]}
        for key, length in LENGTHS.items()
    }
    store.put("train", samples, {key: {"seq_len": length} for key, length in LENGTHS.items()})
    return store


def test_samples_come_back_in_the_order_asked_for(store):
    data = store.kv_batch_get(["b_0_0", "a_1_0"], "train")
    assert [row.tolist() for row in data["responses"].unbind()] == [[0, 1, 2, 3, 4], [0]]
    assert data["num_turns"].tolist() == [2, 2]
    assert list(data["uid"]) == ["b", "a"]


def test_padding_makes_rows_as_long_as_the_longest_only(store):
    data = store.kv_batch_get(list(LENGTHS), "train", ["responses"])
    assert data.to_padded_tensor()["responses"].shape == (3, 5)


def test_fields_that_there_are_not_are_left_out(store):
    assert set(store.kv_batch_get(["a_0_0"], "train", ["responses", "values"]).keys()) == {"responses"}


def test_columns_written_later_belong_to_their_samples(store):
    scores = torch.nested.as_nested_tensor([torch.ones(5), torch.zeros(3)], layout=torch.jagged)
    meta = store.kv_batch_put(["b_0_0", "a_0_0"], "train", fields=TensorDict({"scores": scores}, batch_size=2))
    assert meta.tags == [{"seq_len": 5}, {"seq_len": 3}]
    assert store.column("train", ["a_0_0", "b_0_0"], "scores")[1].tolist() == [1] * 5


def test_tags_are_listed_by_partition_and_can_be_renewed(store):
    store.kv_batch_put(["a_0_0"], "train", tags=[{"status": "success"}])
    assert store.kv_list("train")["train"]["a_0_0"] == {"seq_len": 3, "status": "success"}
    assert store.kv_list("val") == {}


def test_what_is_cleared_is_gone(store):
    store.kv_clear(["a_0_0", "unknown"], "train")
    assert set(store.kv_list()["train"]) == {"a_1_0", "b_0_0"}
    with pytest.raises(KeyError):
        store.kv_batch_get(["a_0_0"], "train")


def test_transfer_queue_has_every_function_that_is_replaced():
    for name in ("init", "close", "kv_batch_put", "kv_batch_get", "kv_list", "kv_clear"):
        assert callable(getattr(transfer_queue, name))


class Doubling:
    """A worker group of one call, which sees only what it is sent."""

    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        assert tu.get_non_tensor_data(data, "temperature", None) == 0.5
        doubled = torch.nested.as_nested_tensor([2 * row for row in data["responses"].unbind()], layout=torch.jagged)
        return tu.get_tensordict({"log_probs": doubled}, {"metrics": {"mfu": 0}})


def test_workers_get_the_samples_and_what_they_return_is_stored(store):
    batch = KVBatchMeta(keys=list(LENGTHS), tags=[{}] * 3, partition_id="train", extra_info={"temperature": 0.5})
    assert StoredWorkers(Doubling(), store).compute_log_prob(batch) is batch
    assert store.column("train", ["a_0_0"], "log_probs")[0].tolist() == [0, 2, 4]
