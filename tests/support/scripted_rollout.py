"""A rollout whose workers answer with given token ids and without vLLM."""

import asyncio
import time

import numpy as np
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from rgtrain.training.dataset import TRAIN, ReasoningGymDataset
from rgtrain.training.rollout.channel import TrainerLink
from rgtrain.training.rollout.group_rollout import GroupRollout
from rgtrain.training.rollout.groups import Group
from rgtrain.training.rollout.sample_store import STORE

NUM_PROMPTS = 3


class Workers:
    """One worker that answers every prompt with given token ids."""

    world_size = 1

    def __init__(self, response: list[int], *, num_lost: int = 0, failure: Exception | None = None):
        self._response = response
        self._num_lost = num_lost
        self._failure = failure
        self._trainer = TrainerLink()

    def generate(self, shares, samplings, seeds, endpoints):
        return [asyncio.ensure_future(self._answer(shares[0], samplings[0], endpoints[0]))]

    async def _answer(self, prompts, sampling, endpoint):
        if self._failure:
            raise self._failure
        self._trainer.connect(endpoint, worker=0)
        self._trainer.moved("completion", 1, 2)
        for uid, _ in prompts[self._num_lost :]:
            log_probs = [np.full(len(self._response), -0.5)] * sampling["n"]
            self._trainer.send(Group(uid, responses=[self._response] * sampling["n"], log_probs=log_probs, version=7))


def started(config, tokenizer, workers: Workers) -> GroupRollout:
    """Return a rollout that has started to generate a batch."""
    STORE.kv_clear(list(STORE.kv_list("train").get("train", {})), "train")
    rollout = GroupRollout.create(config=config, llm_client=workers)
    rollout.generate_sequences(batch_of(config, tokenizer, range(NUM_PROMPTS)))
    return rollout


def batch_of(config, tokenizer, numbers: range):
    dataset = ReasoningGymDataset(TRAIN, tokenizer=tokenizer, config=config.data)
    columns = collate_fn([dataset[number] for number in numbers])
    columns["uid"] = np.array([f"u{number}" for number in numbers], dtype=object)
    return tu.get_tensordict(dict(columns))


def statuses(num_prompts: int = NUM_PROMPTS) -> list[str]:
    """Wait until `num_prompts` prompts are finished or failed, and return their statuses."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        tags = STORE.kv_list("train").get("train", {})
        prompts = [tags[uid]["status"] for uid in tags if "_" not in uid]
        if len(prompts) == num_prompts:
            return prompts
        time.sleep(0.02)
    raise AssertionError("the rollout did not end")
