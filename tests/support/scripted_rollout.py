"""A rollout whose workers answer with given token ids and without vLLM."""

import asyncio
import functools
import time
from types import SimpleNamespace

import numpy as np
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from rgtrain.training.dataset import TRAIN, ReasoningGymDataset
from rgtrain.training.rollout.channel import TrainerLink
from rgtrain.training.rollout.dispatch import EngineCapacity
from rgtrain.training.rollout.group_rollout import GroupRollout
from rgtrain.training.rollout.groups import Group
from rgtrain.training.rollout.sample_store import STORE

NUM_PROMPTS = 3


class Workers:
    """One worker that answers every prompt with given token ids."""

    num_workers = 1
    # verl names this type after the method of the Ray actor.
    generate = type("actor_generate", (), {})()

    def __init__(self, response: list[int], *, num_lost: int = 0, failure: Exception | None = None):
        self._response = response
        self._num_lost = num_lost
        self._failure = failure
        # The numbers of each worker's calls in the order of sending.
        self.numbers: list[list[int]] = [[] for _ in range(self.num_workers)]
        self._links = [TrainerLink() for _ in range(self.num_workers)]

    @property
    def workers(self):
        return [
            SimpleNamespace(actor_generate=SimpleNamespace(remote=functools.partial(self._call, number)))
            for number in range(self.num_workers)
        ]

    def _call(self, worker, parts, sampling, number, seed, endpoint, reports):
        self.numbers[worker].append(number)
        return asyncio.ensure_future(self._answer(worker, parts, seed, endpoint, reports))

    async def _answer(self, worker, parts, seed, endpoint, reports):
        if self._failure:
            raise self._failure
        self._links[worker].connect(endpoint, worker=worker)
        self._links[worker].moved("completion", 1, 2)
        for part in parts[self._num_lost :]:
            self._send(worker, part)
        return EngineCapacity(1024)

    def _send(self, worker, part):
        (uid, first), num_completions, _ = part
        log_probs = [np.full(len(self._response), -0.5)] * num_completions
        self._links[worker].send(Group(uid, [self._response] * num_completions, log_probs, version=7, first=first))


def started(config, tokenizer, workers: Workers, *, num_prompts: int = NUM_PROMPTS) -> GroupRollout:
    """Return a rollout that has started to generate a batch."""
    STORE.kv_clear(list(STORE.kv_list("train").get("train", {})), "train")
    rollout = GroupRollout.create(config=config, llm_client=workers)
    rollout.generate_sequences(batch_of(config, tokenizer, range(num_prompts)))
    return rollout


def batch_of(config, tokenizer, numbers: range):
    dataset = ReasoningGymDataset(TRAIN, tokenizer=tokenizer, config=config.data)
    columns = collate_fn([dataset[number] for number in numbers])
    columns["uid"] = np.array([f"u{number}" for number in numbers], dtype=object)
    return tu.get_tensordict(dict(columns))


def statuses(num_prompts: int = NUM_PROMPTS, *, partition: str = "train") -> list[str]:
    """Wait until `num_prompts` prompts are finished or failed, and return their statuses."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        tags = STORE.kv_list(partition).get(partition, {})
        prompts = [tags[uid]["status"] for uid in tags if "_" not in uid]
        if len(prompts) == num_prompts:
            return prompts
        time.sleep(0.02)
    raise AssertionError("the rollout did not end")
