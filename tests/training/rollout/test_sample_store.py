"""The store replaces TransferQueue, and finished groups are taken from it in the order of drawing."""

import pickle
import random
import threading
import time
import uuid
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import transfer_queue
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from rgtrain.training.rollout import sample_store
from rgtrain.training.rollout.packed_columns import PackedBatch
from rgtrain.training.rollout.sample_store import OrderedReplayBuffer, SampleBlock, SampleStore, StoredWorkers
from rgtrain.upstream.rank_parts import RankParts

LENGTHS = {"a_0_0": 3, "a_1_0": 1, "b_0_0": 5}


@pytest.fixture
def store() -> SampleStore:
    store = SampleStore()
    samples = {
        key: {"responses": torch.arange(length), "num_turns": torch.tensor(2), "uid": key[0]}
        for key, length in LENGTHS.items()
    }
    store.put("train", SampleBlock.of(samples), {key: {"seq_len": length} for key, length in LENGTHS.items()})
    return store


def test_samples_are_returned_in_the_requested_order(store):
    data = store.kv_batch_get(["b_0_0", "a_1_0"], "train")
    assert [row.tolist() for row in data["responses"].unbind()] == [[0, 1, 2, 3, 4], [0]]
    assert data["num_turns"].tolist() == [2, 2]
    assert list(data["uid"]) == ["b", "a"]


def test_rows_are_padded_only_to_the_longest_row(store):
    data = store.kv_batch_get(list(LENGTHS), "train", ["responses"])
    assert data.to_padded_tensor()["responses"].shape == (3, 5)


def test_fields_that_do_not_exist_are_left_out(store):
    assert set(store.kv_batch_get(["a_0_0"], "train", ["responses", "values"]).keys()) == {"responses"}


def test_columns_that_are_written_later_are_added_to_their_samples(store):
    scores = torch.nested.as_nested_tensor([torch.ones(5), torch.zeros(3)], layout=torch.jagged)
    meta = store.kv_batch_put(["b_0_0", "a_0_0"], "train", fields=TensorDict({"scores": scores}, batch_size=2))
    assert meta.tags == [{"seq_len": 5}, {"seq_len": 3}]
    assert store.column("train", ["a_0_0", "b_0_0"], "scores")[1].tolist() == [1] * 5


def test_tags_are_listed_by_partition_and_can_be_updated(store):
    store.kv_batch_put(["a_0_0"], "train", tags=[{"status": "success"}])
    assert store.kv_list("train")["train"]["a_0_0"] == {"seq_len": 3, "status": "success"}
    assert store.kv_list("val") == {}


def test_cleared_samples_are_removed(store):
    store.kv_clear(["a_0_0", "unknown"], "train")
    assert set(store.kv_list()["train"]) == {"a_1_0", "b_0_0"}
    with pytest.raises(KeyError):
        store.kv_batch_get(["a_0_0"], "train")


def test_transfer_queue_has_every_function_that_is_replaced():
    for name in ("init", "close", "kv_batch_put", "kv_batch_get", "kv_list", "kv_clear"):
        assert callable(getattr(transfer_queue, name))


class Doubling:
    """A worker group that doubles the responses that its ranks are sent."""

    def compute_log_prob(self, batch: RankParts) -> TensorDict:
        outputs = []
        for sent in batch.parts:
            assert isinstance(sent, PackedBatch)
            data = pickle.loads(pickle.dumps(sent))
            assert tu.get_non_tensor_data(data, "temperature", None) == 0.5
            doubled = [2 * row for row in data["responses"].unbind()]
            nested = torch.nested.as_nested_tensor(doubled, layout=torch.jagged)
            outputs.append(tu.get_tensordict({"log_probs": nested}, {"metrics": {"mfu": 0}}))
        return tu.concat_tensordict(outputs)


class Division(NamedTuple):
    """A division with the given shares for every call."""

    parts: list[list[int]]

    def shares(self, method: str, batch: KVBatchMeta) -> list[SimpleNamespace]:
        return [SimpleNamespace(samples=part, mini_batches=[]) for part in self.parts]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([[0, 1, 2]], id="one rank"),
        pytest.param([[2], [0, 1]], id="ranks with different numbers of samples"),
        pytest.param([[1, 2], [0], [2], [2]], id="more ranks than samples"),
    ],
)
def test_ranks_get_their_samples_and_the_returned_columns_are_stored(store, parts):
    batch = KVBatchMeta(keys=list(LENGTHS), tags=[{}] * 3, partition_id="train", extra_info={"temperature": 0.5})
    assert StoredWorkers(Doubling(), store, Division(parts)).compute_log_prob(batch) is batch
    for key, length in LENGTHS.items():
        assert store.column("train", [key], "log_probs")[0].tolist() == [2 * number for number in range(length)]


BATCH_SIZE = 4
# The accuracies of each group in the order of drawing. Groups with equal accuracies have no signal.
ACCURACIES = [[0.1] * 3, [0.0, 1.0, 0.0], [1.0] * 3, [0.3] * 3, *[[0.0, 0.5, 0.5], [0.1] * 3] * 20]


class Sampling:
    """Dynamic sampling of one step. The order and the times at which groups finish depend on `seed`."""

    def __init__(self, store: SampleStore, *, in_waves: bool, seed: int, poll_interval: float = 0.001):
        self._store = store
        self._rng = random.Random(seed)
        self._pending: list[str] = []
        self.drawn: list[str] = []
        self.refills: list[int] = []
        self._buffer = OrderedReplayBuffer(
            trainer_mode="sync",
            trainer_config={},
            max_off_policy_threshold=None,
            max_off_policy_strategy="drop",
            sampler_kwargs={},
            poll_interval=poll_interval,
            refill_fn=self._refill,
            filter_groups_metric="acc",
            train_batch_size=BATCH_SIZE,
            gen_batch_size=1,
        )
        self._buffer.in_waves = in_waves

    def _refill(self, num_prompts: int) -> None:
        self.refills.append(num_prompts)
        self.draw(num_prompts)

    def draw(self, num_prompts: int) -> None:
        uids = [str(uuid.uuid4()) for _ in range(num_prompts)]
        tag = {"is_prompt": True, "status": "pending", "global_steps": 1}
        self._store.kv_batch_put(uids, "train", tags=[tag] * num_prompts)
        self.drawn += uids
        self._pending += uids

    def _finish_groups(self, done: threading.Event) -> None:
        while not done.is_set():
            if self._pending:
                uid = self._pending.pop(self._rng.randrange(len(self._pending)))
                accuracies = ACCURACIES[self.drawn.index(uid)]
                keys = [f"{uid}_{number}_0" for number in range(len(accuracies))]
                fields = [{"extra_fields": {"reward_extra_info": {"acc": accuracy}}} for accuracy in accuracies]
                tags = {key: {"status": "success"} for key in keys}
                samples = SampleBlock.of(dict(zip(keys, fields, strict=True)))
                self._store.put("train", samples, {**tags, uid: {"status": "finished"}})
            time.sleep(self._rng.random() * 0.004)

    def run(self) -> list[int]:
        """Draw a batch and sample it. Return the numbers of the chosen prompts in the order of drawing."""
        self.draw(BATCH_SIZE)
        done = threading.Event()
        finishing = threading.Thread(target=self._finish_groups, args=(done,))
        finishing.start()
        try:
            batch, metrics = self._buffer.sample(global_steps=1, partition_id="train", batch_size=BATCH_SIZE)
        finally:
            done.set()
            finishing.join()
        assert metrics["training/filter_groups/evicted_samples"] > 0
        return [self.drawn.index(key.partition("_")[0]) for key in batch.keys[::3]]


@pytest.fixture
def empty_store(monkeypatch) -> SampleStore:
    """Replace TransferQueue by an empty store."""
    store = SampleStore()
    monkeypatch.setattr(sample_store, "STORE", store)
    for name in ("kv_batch_put", "kv_batch_get", "kv_list", "kv_clear"):
        monkeypatch.setattr(transfer_queue, name, getattr(store, name))
    return store


def test_prompts_drawn_in_waves_do_not_depend_on_the_order_in_which_groups_finish(empty_store):
    for seed in range(5):
        sampling = Sampling(empty_store, in_waves=True, seed=seed)
        # Three of the first four groups have no signal. Further prompts are drawn in waves of one batch.
        assert sampling.run() == [1, 4, 6, 8]
        assert sampling.refills == [4, 4]
        assert empty_store.kv_list("train")["train"].keys() <= {
            f"{uid}_{number}_0" for uid in sampling.drawn for number in range(3)
        }
        empty_store.kv_clear(list(empty_store.kv_list("train")["train"]), "train")


def test_the_groups_drawn_first_are_taken_except_those_without_a_signal(empty_store):
    for seed in range(5):
        sampling = Sampling(empty_store, in_waves=False, seed=seed)
        assert sampling.run() == [1, 4, 6, 8]
        empty_store.kv_clear(list(empty_store.kv_list("train")["train"]), "train")


def test_dynamic_sampling_waits_for_no_further_groups_if_all_are_finished(empty_store):
    # With such an interval between two looks, the test would not end.
    sampling = Sampling(empty_store, in_waves=False, seed=0, poll_interval=3600)
    assert sampling.run() == [1, 4, 6, 8]


@pytest.mark.parametrize("status", ["finished", "failure"])
def test_the_trainer_is_woken_when_the_last_prompt_is_finished_or_has_failed(store, status):
    tag = {"is_prompt": True, "status": "pending", "global_steps": 1}
    store.kv_batch_put(["a", "b"], "train", tags=[tag, tag])
    woken = threading.Event()

    def wait() -> None:
        store.wait_for_prompts("train", fewer_than=1, timeout_s=60)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    store.put("train", None, {"a": {"status": "finished"}})
    assert not woken.wait(0.05)
    store.put("train", None, {"b": {"status": status}})
    assert woken.wait(10)


def test_prompts_of_other_partitions_and_removed_prompts_are_not_waited_for(store):
    tag = {"is_prompt": True, "status": "running", "global_steps": 1}
    store.kv_batch_put(["a", "b"], "train", tags=[tag, tag])
    store.wait_for_prompts("val", fewer_than=1, timeout_s=60)
    store.kv_clear(["a", "b"], "train")
    store.wait_for_prompts("train", fewer_than=1, timeout_s=60)


def test_a_prompt_that_never_finishes_is_waited_for_only_for_a_limited_time(store):
    store.kv_batch_put(["a"], "train", tags=[{"is_prompt": True, "status": "pending", "global_steps": 1}])
    store.wait_for_prompts("train", fewer_than=1, timeout_s=0.01)


def test_columns_that_are_read_again_are_not_joined_again(store):
    keys = list(LENGTHS)
    column = store.columns("train", keys, ["responses"])["responses"]
    store.columns("train", keys[:1], ["responses"])
    assert store.columns("train", list(keys), ["responses"])["responses"] is column


def test_a_column_that_is_written_in_another_order_replaces_an_earlier_one(store):
    keys = list(LENGTHS)
    assert store.column("train", keys, "num_turns")[0] == 2
    store.kv_batch_put(keys[::-1], "train", fields=TensorDict({"num_turns": torch.tensor([5, 4, 3])}, batch_size=3))
    assert [int(turns) for turns in store.column("train", keys, "num_turns")] == [3, 4, 5]
    store.kv_batch_put(keys[1:2], "train", fields=TensorDict({"num_turns": torch.tensor([9])}, batch_size=1))
    assert [int(turns) for turns in store.column("train", keys, "num_turns")] == [3, 9, 5]
