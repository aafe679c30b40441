"""Groups that workers push are scored and passed to the trainer, and a failed worker is not waited for."""

import asyncio
import copy
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from support import recorded_rewards
from support.experiments import small_with_model
from support.scripted_rollout import NUM_PROMPTS, Workers, batch_of, started, statuses
from verl.single_controller.ray.base import func_generator
from verl.utils import tensordict_utils as tu

from rgtrain.checkpoints.rollout_files import RolloutFiles
from rgtrain.config.run_config import RolloutsConfig
from rgtrain.training.dataset import TRAIN, ReasoningGymDataset
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.rollout.dispatch import EngineCapacity
from rgtrain.training.rollout.group_rollout import GroupRollout, _remote_generate
from rgtrain.training.rollout.groups import Group
from rgtrain.training.rollout.packed_columns import rows_of
from rgtrain.training.rollout.sample_store import STORE
from rgtrain.training.rollout_keeper import SAMPLE_FIELDS, RolloutKeeper, scored_samples


@pytest.fixture(scope="module")
def config(tiny_model):
    return OmegaConf.create(small_with_model(tiny_model, Path("unused")))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_every_completion_is_stored_with_the_reward_of_its_group(config, tokenizer):
    response = tokenizer.encode("<answer>nothing</answer>", add_special_tokens=False)
    changed = copy.deepcopy(config)
    changed.reward.parts["pkg://support.recorded_rewards.record"] = {"trusted": True, "weight": 2}
    recorded_rewards.GROUPS.clear()
    rollout = started(changed, tokenizer, Workers(response))
    assert statuses() == ["finished"] * NUM_PROMPTS
    rollout.raise_failures()
    group_size = config.actor_rollout_ref.rollout.n
    keys = [f"u{i}_{number}_0" for i in range(NUM_PROMPTS) for number in range(group_size)]
    data = STORE.kv_batch_get(keys, "train")
    assert [row.tolist() for row in data["responses"].unbind()] == [response] * len(keys)
    assert data["rollout_log_probs"].values().unique().tolist() == [-0.5]
    details = [fields["reward_extra_info"] for fields in STORE.column("train", keys, "extra_fields")]
    found = {(one["answered"], one["reward_record"], one["num_failed_record"]) for one in details}
    assert found == {(1.0, 1.0, 0.0)}
    assert STORE.kv_list("train")["train"][keys[0]]["max_global_steps"] == 7
    assert ACTIVITY.place() == "completion 1 of 2"
    assert [len(group) for group in recorded_rewards.GROUPS] == [group_size] * NUM_PROMPTS
    for first, *_ in recorded_rewards.GROUPS:
        assert (first.extracted_answer, first.num_tokens, first.finish_reason) == ("nothing", len(response), "stop")
        assert (first.messages[-1]["content"], first.expected_answer) == (first.question, first.entry["answer"])
        assert (first.dataset, first.step) == (first.entry["metadata"]["source_dataset"], 0)


def test_the_stored_samples_of_a_group_can_be_kept(config, tokenizer, tmp_path):
    started(config, tokenizer, Workers(tokenizer.encode("<answer>nothing</answer>", add_special_tokens=False)))
    assert statuses() == ["finished"] * NUM_PROMPTS
    files, settings = RolloutFiles(tmp_path, max_bytes=10**9, first_step=0), RolloutsConfig(1, 0, 1)
    keeper = RolloutKeeper(files, settings, tokenizer=tokenizer, max_response_length=99, seed=1, trackers={})
    columns = STORE.columns("train", ["u0_0_0", "u0_1_0"], SAMPLE_FIELDS)
    keeper.keep_validation(scored_samples({name: rows_of(column) for name, column in columns.items()}), step=1)
    [group] = keeper.wait()
    assert [completion.answer for completion in group.completions] == ["nothing"] * 2


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

    async def _answer(self, worker, parts, seed, endpoint, reports):
        uids = [part.key.uid for part in parts]
        self.requested.append((uids, seed))
        while "u0" in uids and not self.released.is_set():
            await asyncio.sleep(0.01)
        return await super()._answer(worker, parts, seed, endpoint, reports)


class TwoEngines(Workers):
    """Two engines that answer with the numbers of the completions, and record the requests and seeds of each call."""

    def __init__(self, *, max_num_seqs: int, failing: int | None = None, num_ranks: int = 1, **kwargs):
        self.num_workers = 2 * num_ranks
        super().__init__([1], **kwargs)
        self._num_ranks = num_ranks
        self._max_num_seqs = max_num_seqs
        self._failing = failing
        self.calls: list[tuple[int, list[tuple[str, int, int]], int]] = []

    async def _answer(self, worker, parts, seed, endpoint, reports):
        self.calls.append((worker, [(*part.key, part.num_completions) for part in parts], seed))
        if worker == self._failing:
            raise ValueError("the engine died")
        self._links[worker].connect(endpoint, worker=worker)
        for part in parts[self._num_lost :] if worker % self._num_ranks == 0 else []:
            for _ in range(part.num_completions - 1 if reports else 0):
                self._links[worker].report_completion(part.key)
            numbers = range(part.key.first, part.key.first + part.num_completions)
            responses = [[number + 1] for number in numbers]
            log_probs = [np.full(1, -0.5)] * part.num_completions
            self._links[worker].send(Group(part.key.uid, responses, log_probs, version=7, first=part.key.first))
            await asyncio.sleep(0)
        return EngineCapacity(self._max_num_seqs)


def with_rollout(config, **values):
    """Return the configuration with other values of the rollout."""
    changed = copy.deepcopy(config)
    changed.actor_rollout_ref.rollout.update(values)
    return changed


def test_groups_are_shared_by_engines_and_those_without_room_wait_for_it(config, tokenizer):
    workers = TwoEngines(max_num_seqs=2)
    group_size = config.actor_rollout_ref.rollout.n
    half = group_size // 2
    rollout = started(config, tokenizer, workers)
    assert statuses() == ["finished"] * NUM_PROMPTS
    rollout.raise_failures()
    # Both engines get one and a half of three groups.
    assert sorted(workers.calls)[0][:2] == (0, [("u0", 0, group_size), ("u2", 0, half)])
    assert sorted(workers.calls)[1][:2] == (1, [("u1", 0, group_size), ("u2", half, group_size - half)])
    for uid in (f"u{number}" for number in range(NUM_PROMPTS)):
        keys = [f"{uid}_{number}_0" for number in range(group_size)]
        responses = [row.tolist() for row in STORE.column("train", keys, "responses")]
        assert responses == [[number + 1] for number in range(group_size)]
    assert 0 <= rollout.engine_idle_share < 1
    # From their first calls, it is known how little the engines generate together.
    rollout.generate_sequences(batch_of(config, tokenizer, range(NUM_PROMPTS, 15)))
    assert statuses(15) == ["finished"] * 15
    rollout.raise_failures()
    requested = [part for _, parts, _ in workers.calls for part in parts]
    completions = [(uid, number) for uid, first, count in requested for number in range(first, first + count)]
    assert len(completions) == len(set(completions)) == 15 * group_size
    assert len(workers.calls) > 4
    assert len({seed for *_, seed in workers.calls}) == len(workers.calls)
    # The numbers of an engine's calls continue over batches.
    assert workers.numbers == [list(range(len(numbers))) for numbers in workers.numbers]
    assert sum(map(len, workers.numbers)) == len(workers.calls)


def test_groups_that_wait_for_room_are_not_waited_for_after_a_failure(config, tokenizer, monkeypatch):
    monkeypatch.setattr("rgtrain.training.rollout.group_rollout._ARRIVAL_SECONDS", 0.2)
    # An engine takes one group at a time, and a lost group takes its room forever.
    workers = TwoEngines(max_num_seqs=1, num_lost=1)
    rollout = started(with_rollout(config, max_num_seqs=1), tokenizer, workers, num_prompts=4)
    assert "failure" in statuses(4)
    with pytest.raises(RuntimeError, match="did not arrive within"):
        rollout.raise_failures()
    workers._num_lost, workers._failing = 0, 1
    rollout.generate_sequences(batch_of(config, tokenizer, range(4, 8)))
    assert "failure" in statuses(8)[4:]
    with pytest.raises(RuntimeError, match="the engine died"):
        rollout.raise_failures()
    # The next batch finds all engines free.
    workers._failing = None
    rollout.generate_sequences(batch_of(config, tokenizer, range(8, 10)))
    assert statuses(10)[-2:] == ["finished"] * 2
    rollout.raise_failures()
    # An engine would wait forever for a number that was not sent.
    assert workers.numbers == [list(range(len(numbers))) for numbers in workers.numbers]


def test_a_deterministic_run_makes_the_same_calls_after_it_was_resumed(config, tokenizer):
    deterministic = with_rollout(config, full_determinism=True, max_num_seqs=1, tensor_model_parallel_size=2)
    calls = []
    for steps in ([4, 5], [5]):
        workers = TwoEngines(max_num_seqs=1, num_ranks=2)
        STORE.kv_clear(list(STORE.kv_list("train")["train"]), "train")
        rollout = GroupRollout.create(config=deterministic, llm_client=workers)
        for step in steps:
            first = NUM_PROMPTS * step
            batch = batch_of(config, tokenizer, range(first, first + NUM_PROMPTS))
            rollout.generate_sequences(tu.assign_non_tensor(batch, global_steps=step))
            statuses(NUM_PROMPTS * (steps.index(step) + 1))
        rollout.raise_failures()
        calls.append(sorted(workers.calls[-4:]))
        # Ranks of an engine number their calls alike.
        assert workers.numbers == [[*range(len(steps))]] * 4
    group_size = config.actor_rollout_ref.rollout.n
    assert calls[0] == calls[1]
    # Both ranks of an engine get the same.
    assert [(worker, parts) for worker, parts, _ in calls[0]] == [
        *[(worker, [("u15", 0, group_size), ("u17", 0, group_size)]) for worker in (0, 1)],
        *[(worker, [("u16", 0, group_size)]) for worker in (2, 3)],
    ]
    assert [seed - calls[0][0][2] for *_, seed in calls[0]] == [0, 0, 1, 1]


def test_validation_groups_are_no_training_results(config, tokenizer):
    rollout = started(config, tokenizer, Workers([5]))
    assert statuses() == ["finished"] * NUM_PROMPTS
    validation = batch_of(config, tokenizer, range(2))
    tu.assign_non_tensor(validation, validate=True)
    rollout.generate_sequences(validation)
    assert statuses(2, partition="val") == ["finished"] * 2
    rollout.raise_failures()
    assert len(rollout.take_training_results()) == NUM_PROMPTS


def test_one_worker_can_be_called_by_the_name_that_verl_gives_the_method():
    method = func_generator(None, "actor_generate", None, None, None, False)
    handles = [SimpleNamespace(actor_generate=SimpleNamespace(remote=number)) for number in range(2)]
    assert _remote_generate(SimpleNamespace(generate=method, workers=handles)) == [0, 1]


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
