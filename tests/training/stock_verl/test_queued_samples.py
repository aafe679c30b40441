"""Samples in verl's TransferQueue become rollouts and group results, also those of dropped groups."""

from types import SimpleNamespace

import pytest
import torch
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import replay_buffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from rgtrain.training.stock_verl import queued_samples
from rgtrain.training.stock_verl.queued_samples import group_results, observed, rollouts


def sample(uid: str, reward: float, *, length: int = 2, dataset: str = "gcd", level: int | None = 1, **details) -> dict:
    scores = torch.zeros(length)
    scores[-1] = reward
    extra_info = {"num_held_out": 2, "num_too_long": 1, "level": level}
    return {
        "uid": uid,
        "data_source": dataset,
        "rm_scores": scores,
        "extra_fields": {"reward_extra_info": details},
        "extra_info": extra_info,
        "responses": torch.arange(length),
    }


class Queue:
    """TransferQueue's functions over a dictionary of samples."""

    def __init__(self, samples: dict[str, dict], tags: dict[str, dict] | None = None):
        self.samples, self.tags = samples, tags or {}

    def kv_batch_get(self, keys, partition_id, select_fields):
        rows = [{name: self.samples[key][name] for name in select_fields} for key in keys]
        return list_of_dict_to_tensordict(rows)

    def kv_list(self):
        return {"train": dict(self.tags)}

    def kv_clear(self, keys, partition_id):
        for key in keys:
            self.tags.pop(key, None)


@pytest.fixture
def queue(monkeypatch):
    def install(samples, tags=None) -> Queue:
        queue = Queue(samples, tags)
        monkeypatch.setattr(queued_samples, "transfer_queue", queue)
        monkeypatch.setattr(replay_buffer, "tq", queue)
        return queue

    return install


def batch(*keys: str, padding: tuple[str, ...] = ()) -> KVBatchMeta:
    return KVBatchMeta(keys=list(keys), tags=[{"is_padding": key in padding} for key in keys], partition_id="train")


def test_a_rollout_has_the_reward_and_its_details(queue):
    queue({"a_0_0": sample("a", 0.5, acc=1.0, reward_length=0.25), "a_1_0": sample("a", 0, length=3, acc=0.0)})
    first, second = rollouts(batch("a_0_0", "a_1_0"))
    assert (first.dataset, first.group, first.reward, first.level) == ("gcd", "a", 0.5, 1)
    assert (first.num_held_out, first.num_too_long) == (2, 1)
    # Only details that all completions have can be averaged.
    assert (first.details, second.details) == ({"acc": 1.0}, {"acc": 0.0})


def test_without_an_accuracy_the_reward_counts_as_one(queue):
    queue({"a_0_0": sample("a", 0.75), "a_1_0": sample("a", 0.25, note="text")})
    assert [each.details for each in rollouts(batch("a_0_0", "a_1_0"))] == [{"acc": 0.75}, {"acc": 0.25}]


def test_copies_of_samples_and_earlier_turns_are_not_counted(queue):
    keys = ("a_0_0", "a_0_1", "a_0_10", "a_1_0", "b_0_0")
    queue({key: sample(key[0], 1.0 if key == "a_0_10" else 0.0) for key in keys})
    found = rollouts(batch(*keys, padding=("b_0_0",)))
    assert [(each.group, each.reward) for each in found] == [("a", 1.0), ("a", 0.0)]


def test_a_batch_without_samples_has_no_rollouts(queue):
    queue({})
    assert rollouts(batch()) == []


def test_the_curriculum_gets_the_accuracies_of_each_group(queue):
    samples = {"a_0_0": sample("a", 1.5, acc=1.0), "b_0_0": sample("b", 0, acc=0.0), "a_1_0": sample("a", 0.5, acc=0.0)}
    queue(samples)
    first, second = group_results(rollouts(batch(*samples)))
    assert (first.dataset, first.level, first.scores, first.rewards) == ("gcd", 1, [1.0, 0.0], [1.5, 0.5])
    assert second.scores == [0.0]


def tags_of(**statuses: str) -> dict[str, dict]:
    prompts = {uid: {"is_prompt": True, "status": status, "global_steps": 1} for uid, status in statuses.items()}
    return prompts | {f"{uid}_{n}_0": {} for uid, status in statuses.items() if status == "finished" for n in range(2)}


def buffer_of(original: type, refill=lambda number: None):
    options = {"filter_groups_metric": "acc", "refill_fn": refill, "train_batch_size": 1, "gen_batch_size": 1}
    return observed(original)("sync", SimpleNamespace(), 8, "drop", {}, poll_interval=0, **options)


@pytest.mark.parametrize("original", [replay_buffer.ReplayBuffer, replay_buffer.ReplayBufferAsync])
def test_the_results_of_groups_that_dynamic_sampling_drops_are_kept(queue, original):
    samples = {f"easy_{n}_0": sample("easy", 1, acc=1.0) for n in range(2)}
    samples |= {f"mixed_{n}_0": sample("mixed", n, acc=float(n)) for n in range(2)}
    queue(samples, tags_of(easy="finished", mixed="finished"))
    buffer = buffer_of(original)
    taken, _ = buffer.sample(global_steps=1, partition_id="train", batch_size=1)
    assert sorted(taken.keys) == ["mixed_0_0", "mixed_1_0"]
    assert [result.scores for result in buffer.take_dropped()] == [[1.0, 1.0]]
    assert buffer.take_dropped() == []


def test_failed_prompts_are_reported_once(queue, capsys):
    queue({}, tags_of(lost="failure", slow="running"))
    buffer = buffer_of(replay_buffer.ReplayBuffer)
    for _ in range(2):
        buffer._sync_metadata_from_transfer_queue()
    assert capsys.readouterr().out.count("failed for 1 prompt(s)") == 1


def test_finished_samples_are_progress(queue, monkeypatch):
    moves = []
    monkeypatch.setattr(queued_samples.ACTIVITY, "moved", lambda: moves.append(1))
    known = queue({}, tags_of(a="running"))
    buffer = buffer_of(replay_buffer.ReplayBuffer)
    buffer._sync_metadata_from_transfer_queue()
    assert moves == []
    known.tags |= {"a_0_0": {}}
    for _ in range(2):
        buffer._sync_metadata_from_transfer_queue()
    assert moves == [1]
