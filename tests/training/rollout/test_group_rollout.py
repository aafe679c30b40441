"""Groups that workers push are scored and passed to the trainer, and a failed worker is not waited for."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from support.experiments import small_with_model
from support.scripted_rollout import NUM_PROMPTS, Workers, batch_of, started, statuses

from rgtrain.training.dataset import TRAIN, ReasoningGymDataset
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.rollout.group_rollout import GroupRollout
from rgtrain.training.rollout.sample_store import STORE


@pytest.fixture(scope="module")
def config(tiny_model):
    return OmegaConf.create(small_with_model(tiny_model, Path("unused")))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_every_completion_is_stored_with_its_reward(config, tokenizer):
    response = tokenizer.encode("<answer>nothing</answer>", add_special_tokens=False)
    rollout = started(config, tokenizer, Workers(response))
    assert statuses() == ["finished"] * NUM_PROMPTS
    rollout.raise_failures()
    group_size = config.actor_rollout_ref.rollout.n
    keys = [f"u{i}_{number}_0" for i in range(NUM_PROMPTS) for number in range(group_size)]
    data = STORE.kv_batch_get(keys, "train")
    assert [row.tolist() for row in data["responses"].unbind()] == [response] * len(keys)
    assert data["rollout_log_probs"].values().unique().tolist() == [-0.5]
    details = [fields["reward_extra_info"] for fields in STORE.column("train", keys, "extra_fields")]
    assert {detail["answered"] for detail in details} == {1.0}
    assert STORE.kv_list("train")["train"][keys[0]]["max_global_steps"] == 7
    assert ACTIVITY.place() == "completion 1 of 2"


def test_a_malformed_group_ends_the_batch_with_an_error_that_names_the_fault(config, tokenizer):
    rollout = started(config, tokenizer, Workers([10**6]))
    assert statuses() == ["failure"] * NUM_PROMPTS
    with pytest.raises(RuntimeError, match="the group 'u0' has token ids from 1000000 to 1000000; only ids from 0 to"):
        rollout.raise_failures()


def test_groups_that_never_arrive_end_in_a_timeout(config, tokenizer, monkeypatch):
    monkeypatch.setattr("rgtrain.training.rollout.group_rollout._ARRIVAL_SECONDS", 0.5)
    rollout = started(config, tokenizer, Workers([1], num_lost=1))
    assert sorted(statuses()) == ["failure", *["finished"] * (NUM_PROMPTS - 1)]
    with pytest.raises(RuntimeError, match="TimeoutError"):
        rollout.raise_failures()


def test_a_failing_worker_ends_the_batch_and_its_error_is_raised_once(config, tokenizer):
    rollout = started(config, tokenizer, Workers([], failure=ValueError("the engine died")))
    assert statuses() == ["failure"] * NUM_PROMPTS
    with pytest.raises(RuntimeError, match="the engine died"):
        rollout.raise_failures()
    rollout.raise_failures()


class SlowForTheFirst(Workers):
    """Workers that answer the first batch only once `released` is set, and record the requested prompts and seeds."""

    def __init__(self, response: list[int]):
        super().__init__(response)
        self.released = threading.Event()
        self.requested: list[tuple[list[str], int]] = []

    async def _answer(self, prompts, sampling, endpoint):
        while "u0" in [uid for uid, _ in prompts] and not self.released.is_set():
            await asyncio.sleep(0.01)
        await super()._answer(prompts, sampling, endpoint)

    def generate(self, shares, samplings, seeds, endpoints):
        self.requested.append(([uid for uid, _ in shares[0]], seeds[0]))
        return super().generate(shares, samplings, seeds, endpoints)


def test_prompts_drawn_during_a_generation_do_not_wait_for_its_end(config, tokenizer):
    workers = SlowForTheFirst([1])
    rollout = started(config, tokenizer, workers)
    rollout.generate_sequences(batch_of(config, tokenizer, range(NUM_PROMPTS, NUM_PROMPTS + 2)))
    assert statuses(2) == ["finished"] * 2
    workers.released.set()
    assert statuses(NUM_PROMPTS + 2) == ["finished"] * (NUM_PROMPTS + 2)
    rollout.raise_failures()
    # The results are in the order of drawing, not of arrival.
    dataset = ReasoningGymDataset(TRAIN, tokenizer=tokenizer, config=config.data)
    drawn = [dataset[number]["data_source"] for number in range(NUM_PROMPTS + 2)]
    assert len(set(drawn)) > 1
    assert [result.dataset for result in rollout.take_training_results()] == drawn
    assert [uids for uids, _ in workers.requested] == [["u0", "u1", "u2"], ["u3", "u4"]]
    assert len({seed for _, seed in workers.requested}) == 2


@pytest.mark.parametrize(
    ("tensor_parallel", "first", "expected"),
    [
        (1, 0, ["AE", "B", "C", "D"]),
        (1, 3, ["B", "C", "D", "AE"]),
        (2, 1, ["BD", "BD", "ACE", "ACE"]),
    ],
)
def test_engines_get_prompts_in_turn(tensor_parallel, first, expected):
    workers = SimpleNamespace(world_size=4)
    rollout = SimpleNamespace(_rollout=SimpleNamespace(tensor_model_parallel_size=tensor_parallel), _workers=workers)
    assert GroupRollout._shares(rollout, "ABCDE", first=first) == expected
