"""One rank of each tensor-parallel group pushes finished groups to the trainer, and vLLM gets the actor's weights."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rgtrain.training import worker as worker_module
from rgtrain.training.rollout.channel import TrainerLink, WorkerChannel
from rgtrain.training.rollout.dispatch import EngineCapacity
from rgtrain.training.rollout.groups import Group, GroupLimits, PartKey, PartRequest
from rgtrain.training.worker import GeneratingWorker

LIMITS = GroupLimits(vocabulary_size=100, max_response_tokens=8, max_group_size=1000)
CAPACITY = EngineCapacity(64, 1000)


class Rollout:
    """A replacement for vLLM that answers each prompt with the prompt's tokens, after one report of a completion."""

    capacity = CAPACITY

    def __init__(self):
        self.calls: list[tuple] = []

    async def generate(self, parts, sampling, *, number, seed, finished) -> None:
        self.calls.append((sampling, number, seed))
        for part in parts:
            finished([], [part.key])
            tokens = part.prompt_ids
            finished([Group(part.key.uid, [tokens], [np.zeros(len(tokens), np.float32)], version=4)], [])

    async def update_weights(self, weights, *, global_steps) -> None:
        self.calls.append((weights, global_steps))


def worker(*, rank: int = 0, tensor_parallel: int = 1, adapter: dict | None = None) -> GeneratingWorker:
    """Return a worker without a model. The string "weights" stands for the actor's parameters."""
    made = object.__new__(GeneratingWorker)
    made._rank = rank
    made.rollout = Rollout()
    rollout = SimpleNamespace(tensor_model_parallel_size=tensor_parallel, free_cache_engine=False)
    made.config = SimpleNamespace(rollout=rollout)
    made.actor = SimpleNamespace(engine=SimpleNamespace(get_per_tensor_param=lambda: ("weights", adapter)))
    return made


def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *ranks: int, tensor_parallel: int) -> list[str]:
    """Return the uids that arrive at the trainer if each rank generates a different group."""

    async def run() -> list[str]:
        uids = [f"from rank {rank}" for rank in ranks]
        with channel.awaiting() as arrivals:
            for uid in (*uids, "last"):
                arrivals.expect(PartKey(uid, 0), 1)
            for rank, uid in zip(ranks, uids, strict=True):
                link = TrainerLink()
                monkeypatch.setattr(worker_module, "TRAINER", link)
                made = worker(rank=rank, tensor_parallel=tensor_parallel)
                part = PartRequest(PartKey(uid, 0), 1, [5, 6])
                assert await made.generate([part], {}, 0, 3, channel.endpoint, False) == CAPACITY
                links.append(link)
            links[0].send(Group("last", [[1]], [np.zeros(1, np.float32)], version=4))
            found = []
            while "last" not in found:
                found.append((await asyncio.wait_for(arrivals.get(), timeout=60)).uid)
            # Groups of other ranks may arrive after the last one.
            await asyncio.sleep(0.3)
            while not arrivals._queue.empty():
                found.append((await arrivals.get()).uid)
            return sorted(found)

    links: list[TrainerLink] = []
    tmp_path.chmod(0o700)
    channel = WorkerChannel(LIMITS, folder=tmp_path, moved=lambda place: None, warn=pytest.fail)
    try:
        return asyncio.run(run())
    finally:
        for link in links:
            link.close()
        channel.close()


def test_a_finished_group_reaches_the_trainer(tmp_path, monkeypatch):
    assert pushed(tmp_path, monkeypatch, 0, tensor_parallel=1) == ["from rank 0", "last"]


def test_one_rank_of_each_tensor_parallel_group_sends(tmp_path, monkeypatch):
    assert pushed(tmp_path, monkeypatch, 0, 1, 2, 3, tensor_parallel=2) == ["from rank 0", "from rank 2", "last"]


@pytest.mark.parametrize("reports_completions", [True, False])
def test_the_sampling_the_number_and_the_seed_reach_the_rollout(monkeypatch, reports_completions):
    reported = []
    trainer = SimpleNamespace(connect=lambda *_, **__: None, send=lambda _: None, report_completion=reported.append)
    monkeypatch.setattr(worker_module, "TRAINER", trainer)
    made, part = worker(), PartRequest(PartKey("u0", 0), 1, [5])
    asyncio.run(made.generate([part], {"temperature": 0.5}, 2, 3, None, reports_completions))
    assert made.rollout.calls == [({"temperature": 0.5}, 2, 3)]
    assert reported == [part.key] * reports_completions


def test_vllm_gets_the_actors_weights_and_the_step():
    made = worker()
    asyncio.run(made.update_weights(global_steps=7))
    assert made.rollout.calls == [("weights", 7)]


def test_an_unmerged_adapter_is_refused_with_the_setting_to_change():
    made = worker(adapter={"r": 8})
    with pytest.raises(NotImplementedError, match="set model.lora.merge=true"):
        asyncio.run(made.update_weights(global_steps=7))
    assert made.rollout.calls == []
