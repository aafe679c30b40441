"""vLLM inside the worker lets calls join a running generation, and the seed alone determines the samples."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm
from support.moe_models import MOE_SETTINGS
from verl.workers.config import RolloutConfig

from rgtrain.config.verl_keys import read_table
from rgtrain.paths import PROJECT_ROOT
from rgtrain.training.rollout import vllm_rollout
from rgtrain.training.rollout.decoding_scheduler import DecodingScheduler
from rgtrain.training.rollout.groups import PartKey, PartRequest
from rgtrain.training.rollout.vllm_rollout import VllmRollout, engine_arguments

CONTEXT = 40


class Engine:
    """Decodes one token per request and step, as vLLM does, until the context of CONTEXT tokens is full."""

    def __init__(self):
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.input_processor = self
        # The requests of each step.
        self.steps: list[list[str]] = []
        self.num_resets = 0
        self._num_left: dict[str, int] = {}

    def reset_prefix_cache(self) -> None:
        assert not self._num_left
        self.num_resets += 1

    def process_inputs(self, uid, prompt, params, *, supported_tasks):
        return SimpleNamespace(request_id=uid, max_tokens=params.max_tokens)

    def add_request(self, request) -> None:
        self._num_left[request.request_id] = request.max_tokens

    def get_output(self):
        self.steps.append(list(self._num_left))
        self._num_left = {name: left - 1 for name, left in self._num_left.items()}
        outputs = [self._output(name, finished=left == 0) for name, left in self._num_left.items()]
        self._num_left = {name: left for name, left in self._num_left.items() if left}
        return SimpleNamespace(outputs=outputs)

    def _output(self, name, *, finished):
        log_probs = SimpleNamespace(logprobs=np.zeros((1, 1)))
        return SimpleNamespace(request_id=name, new_token_ids=[1], new_logprobs=log_probs, finished=finished)


class Rollout(VllmRollout):
    """A rollout with an engine without a model. `finished` has the uids of complete groups in order of completion."""

    def __init__(self, *, tensor_parallel: int = 1):
        self.config = SimpleNamespace(
            tensor_model_parallel_size=tensor_parallel, response_length=CONTEXT, ignore_eos=True
        )
        self._engine = self._core = Engine()
        self._version = 0
        self._completions = {}
        self._waiting_calls = {}
        self._num_steps = 0
        self._stepping = asyncio.Lock()
        self.finished: list[str] = []

    async def complete(self, uid: str, *, num_tokens: int, number: int = 0, seed: int = 1) -> None:
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
        part = PartRequest(PartKey(uid, 0), 2, [1] * (CONTEXT - num_tokens))
        await self.generate([part], sampling, number=number, seed=seed, finished=self._take)

    async def complete_two(self, *, second_at_step: int) -> None:
        """Generate a long completion, and a short one that is requested at a later step."""
        first = asyncio.create_task(self.complete("long", num_tokens=30))
        while len(self._engine.steps) < second_at_step:
            await asyncio.sleep(0)
        await asyncio.gather(first, self.complete("short", num_tokens=2, number=1))

    def _take(self, groups, completions) -> None:
        self.finished += [group.uid for group in groups]


def test_prompts_that_arrive_during_a_generation_join_it_at_the_next_step():
    rollout = Rollout()
    asyncio.run(rollout.complete_two(second_at_step=3))
    assert rollout.finished == ["short", "long"]
    together = [step for step in rollout._engine.steps if len(step) == 4]
    assert together == [["long/0/1", "long/1/1", "short/0/2", "short/1/2"]] * 2
    assert len(rollout._engine.steps) == 30
    assert rollout._engine.num_resets == 1


def test_requests_of_later_calls_have_new_names():
    rollout = Rollout()
    # A validation's prompts have the names of the training prompts of its step.
    for number in range(2):
        asyncio.run(rollout.complete("000010-000000", num_tokens=2, number=number))
    names = [name for step in rollout._engine.steps for name in step]
    assert len(set(names)) == 4


def test_a_call_continues_if_the_call_that_it_joined_finishes_first():
    rollout = Rollout()

    async def both() -> None:
        first = asyncio.create_task(rollout.complete("first", num_tokens=5))
        await asyncio.sleep(0)
        await asyncio.gather(first, rollout.complete("second", num_tokens=20, number=1))

    asyncio.run(both())
    assert rollout.finished == ["first", "second"]


def test_an_engine_takes_calls_in_the_order_of_their_numbers():
    rollout = Rollout()

    async def reversed_calls() -> None:
        await asyncio.gather(*(rollout.complete(f"u{number}", num_tokens=3, number=number) for number in (2, 0, 1)))

    asyncio.run(reversed_calls())
    assert rollout.finished == ["u0", "u1", "u2"]
    assert rollout._engine.steps == [[f"u{number}/{place}/{number + 1}" for number in range(3) for place in (0, 1)]] * 3


@pytest.fixture
def on_two_ranks(monkeypatch):
    """Return a function that runs one coroutine for each of two ranks of an engine, which can agree on a number."""
    meeting, given = threading.Barrier(2, timeout=60), []

    def least(tensor, op, group):
        given.append(int(tensor))
        meeting.wait()
        tensor.fill_(min(given[-2:]))
        meeting.wait()

    monkeypatch.setattr(torch.distributed, "all_reduce", least)
    monkeypatch.setattr(vllm_rollout, "get_tp_group", lambda: SimpleNamespace(cpu_group=None))

    def run(*coroutines) -> None:
        threads = [threading.Thread(target=asyncio.run, args=(coroutine,)) for coroutine in coroutines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def test_ranks_of_a_tensor_parallel_group_admit_a_call_at_the_same_step(on_two_ranks):
    ranks = [Rollout(tensor_parallel=2) for _ in range(2)]
    # The second call reaches one of the ranks much later.
    on_two_ranks(*(rank.complete_two(second_at_step=step) for rank, step in zip(ranks, (2, 12), strict=True)))
    assert [rank.finished for rank in ranks] == [["short", "long"]] * 2
    assert ranks[0]._engine.steps == ranks[1]._engine.steps


def test_ranks_submit_the_same_requests_if_calls_reach_them_in_different_orders(on_two_ranks):
    ranks = [Rollout(tensor_parallel=2) for _ in range(2)]

    async def receive(rank: Rollout, numbers: tuple[int, ...]) -> None:
        calls = []
        for number in numbers:
            calls.append(asyncio.create_task(rank.complete(f"u{number}", num_tokens=20 - number, number=number)))
            # A rank may decode, or wait for the other one, before the next call arrives.
            for _ in range(3):
                await asyncio.sleep(0)
        await asyncio.gather(*calls)

    on_two_ranks(receive(ranks[0], (0, 1, 2, 3)), receive(ranks[1], (2, 0, 3, 1)))
    assert ranks[0]._engine.steps == ranks[1]._engine.steps
    assert ranks[0].finished == ranks[1].finished
    assert sorted(ranks[0].finished) == ["u0", "u1", "u2", "u3"]


@pytest.mark.parametrize(("reported", "expected"), [({}, 160), ({"kv_cache_size_tokens": 96}, 96)])
def test_the_capacity_is_that_of_vllms_scheduler_and_cache(reported, expected):
    cache = SimpleNamespace(num_gpu_blocks=10, block_size=16, **reported)
    rollout = Rollout()
    rollout._engine.vllm_config = SimpleNamespace(cache_config=cache, scheduler_config=SimpleNamespace(max_num_seqs=8))
    assert rollout.capacity == (8, expected)


def test_parts_of_a_group_keep_the_numbers_of_their_completions():
    rollout, groups = Rollout(), []
    part = PartRequest(PartKey("u", 3), 2, [1] * (CONTEXT - 1))
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    asyncio.run(rollout.generate([part], sampling, number=0, seed=1, finished=lambda whole, _: groups.extend(whole)))
    assert rollout._engine.steps == [["u/3/1", "u/4/1"]]
    assert [group.key for group in groups] == [("u", 3)]


def drawn_after(seed: int) -> tuple[float, float]:
    """Return the next random numbers of numpy and torch, from which vLLM's newer and older runners draw."""
    asyncio.run(Rollout().complete("a", num_tokens=1, seed=seed))
    return np.random.random(), torch.rand(()).item()


def test_samples_depend_only_on_the_seed():
    first = drawn_after(2**62 - 1)
    np.random.random(5)
    torch.rand(5)
    assert drawn_after(2**62 - 1) == first
    assert drawn_after(7) != first


def test_requests_want_only_the_log_probabilities_of_sampled_tokens():
    rollout = SimpleNamespace(config=SimpleNamespace(ignore_eos=False))
    params = VllmRollout._sampling_params(rollout, {"temperature": 0.5, "top_p": 1.0, "top_k": -1}, max_tokens=64)
    assert params.max_tokens == 64, "vLLM uses these parameters unchanged"
    assert (params.logprobs, params.repetition_penalty, params.prompt_logprobs) == (0, 1, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, DecodingScheduler),
        ({"seed": 3, "async_scheduling": None}, DecodingScheduler),
        ({"async_scheduling": False}, None),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, None),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "vllm.v1.core.sched.scheduler.Scheduler"),
    ],
)
def test_rollouts_use_the_fast_path_unless_the_configuration_chooses_another_scheduler(monkeypatch, settings, expected):
    monkeypatch.setattr(vllm_rollout, "get_device_name", lambda: "cuda")
    config = RolloutConfig(name="vllm", engine_kwargs={"vllm": settings})
    assert engine_arguments(config, "model", replica=0)["scheduler_cls"] == expected


def test_keys_of_the_rollout_that_vllm_honours_reach_it(monkeypatch):
    monkeypatch.setattr(vllm_rollout, "get_device_name", lambda: "cpu")
    [row] = [row for row in read_table() if getattr(row, "read_by", None) == ("rgtrain.training.rollout.vllm_rollout",)]
    by_default = engine_arguments(RolloutConfig(name="vllm"), "model", replica=0)
    # Sampling reads the third one.
    others = {"cudagraph_capture_sizes": [3], "max_model_len": 77, "ignore_eos": True}
    for name in (key.rpartition(".")[2] for key in row.keys):
        default = getattr(RolloutConfig(name="vllm"), name)
        value = others.get(name) or (not default if isinstance(default, bool) else f"{default}1")
        config = RolloutConfig(name="vllm", **{name: value})
        assert (engine_arguments(config, "model", replica=0) != by_default) == (name != "ignore_eos"), name


def test_an_engine_takes_the_longest_prompt_and_response_and_not_the_models_whole_context():
    lengths = {"prompt_length": 300, "response_length": 40}
    assert engine_arguments(RolloutConfig(name="vllm", **lengths), "model", replica=0)["max_model_len"] == 340
    own = RolloutConfig(name="vllm", **lengths, engine_kwargs={"vllm": {"max_model_len": 999}})
    assert engine_arguments(own, "model", replica=0)["max_model_len"] == 999


def test_engines_over_several_workers_do_not_read_the_memory_of_other_gpus():
    # A worker sees only its own GPU, and vLLM's all-reduce would look for the others.
    config = RolloutConfig(name="vllm", tensor_model_parallel_size=2)
    assert engine_arguments(config, "model", replica=0)["disable_custom_all_reduce"]


@pytest.mark.parametrize("trusted", [True, False])
def test_vllm_runs_the_models_own_code_if_the_model_is_trusted(trusted):
    arguments = engine_arguments(RolloutConfig(name="vllm"), "model", replica=0, trust_remote_code=trusted)
    assert arguments["trust_remote_code"] == trusted


def test_rollouts_on_a_cpu_use_vllms_scheduler(monkeypatch):
    monkeypatch.setattr(vllm_rollout, "get_device_name", lambda: "cpu")
    assert engine_arguments(RolloutConfig(name="vllm"), "model", replica=0)["scheduler_cls"] is None


@pytest.mark.parametrize("trusted", [True, False])
def test_vllm_runs_code_of_the_models_folder_only_if_it_is_trusted(trusted):
    arguments = engine_arguments(RolloutConfig(name="vllm"), "model", replica=0, trust_remote_code=trusted)
    assert arguments["trust_remote_code"] is trusted


def test_new_experts_are_packed_for_vllms_cpu_kernels_and_other_layers_are_left_alone():
    packed = []
    kernel = SimpleNamespace(fused_experts=SimpleNamespace(process_weights_after_loading=packed.append))
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])
    model[0].quant_method = SimpleNamespace(moe_kernel=kernel)
    model[1].quant_method = SimpleNamespace(moe_kernel=None)
    vllm_rollout._pack_experts(model)
    assert packed == [model[0]]


@pytest.mark.slow
def test_vllm_has_the_weights_of_the_last_sync_also_in_experts():
    # Tied embeddings, fused experts under a name of transformers, and experts that checkpoints hold fused.
    families = ["llama", *MOE_SETTINGS]
    command = [sys.executable, "-m", "support.vllm_gaps", *families]
    path = os.pathsep.join([str(PROJECT_ROOT / "tests"), str(PROJECT_ROOT)])
    printed = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True
    ).stdout
    gaps = {
        family: gap for line in printed.splitlines() if line.startswith("{") for family, gap in json.loads(line).items()
    }
    assert gaps.keys() == set(families)
    # A model without experts gets its second weights as copies, so vLLM's loader is not announced for it.
    assert "weight sync:" not in printed.partition('{"llama"')[0]
    # Weights that vLLM lacks would make a difference of several nats.
    assert max(gaps.values()) < 1e-3, gaps


def test_rollouts_use_vllms_scheduler_if_the_version_is_not_verified(monkeypatch):
    monkeypatch.setattr(vllm_rollout, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    assert engine_arguments(RolloutConfig(name="vllm"), "model", replica=0)["scheduler_cls"] is None
