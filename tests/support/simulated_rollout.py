"""Simulate rollouts of one of vLLM's schedulers without a model, with random tokens and log-probabilities."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16
GROUP_SIZE = 8
EOS = 7
# The vocabulary of sampled tokens is small so that EOS often ends a request before max_tokens.
NUM_TOKENS = 50
# vLLM's engine has at most two steps in flight.
MAX_IN_FLIGHT = 2
# No round takes this many steps. A scheduler that loses count of a request would plan empty steps forever.
MAX_STEPS = 5000

_HASH = get_hash_fn_by_name("sha256")
# Called once for all rollouts, so that equal blocks have equal hashes.
init_none_hash(_HASH)


@dataclass(frozen=True)
class Setting:
    """All inputs of a simulated rollout."""

    num_requests: int = 48  # per round, in groups of GROUP_SIZE that have a prompt in common
    num_rounds: int = 1
    resets_cache: bool = True  # before each round
    prompt_length: int = 84
    prompt_lengths_differ: bool = False  # between groups, up to prompt_length
    min_tokens: int = 0
    max_tokens: int = 40
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    num_blocks: int = 50_000
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 16384
    # vLLM's limit on a step's tokens, which may be below the number of running requests. None means
    # max_num_batched_tokens.
    max_num_scheduled_tokens: int | None = None
    long_prefill_token_threshold: int = 0  # the most prompt tokens of one request per step, 0 for no limit
    max_model_len: int = 256
    caching: bool = True
    # Every other group is added at this step of the round, while the others decode. With 0, all groups start together.
    late_step: int = 0
    abort_probability: float = 0.0  # at each of the two points of a step at which the engine accepts aborts
    # The probability that a step is paused. In-flight steps then end, and decoding goes on without any in flight.
    pause_probability: float = 0.0
    seed: int = 0


@dataclass
class Round:
    """A round as observed by the model runner and by the receiver of outputs."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    # By request. Aborted requests are only in `aborted`, with their tokens up to the abort.
    tokens: dict[str, list[int]] = field(default_factory=dict)
    log_probs: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    # The number of steps processed before the request finished, its finish reason and its stop reason.
    reasons: dict[str, tuple] = field(default_factory=dict)
    aborted: dict[str, tuple[list[int], list[tuple[int, float]]]] = field(default_factory=dict)
    num_aborted_in_flight: int = 0
    num_outputs: int = 0
    # At the end of the round, the ids of free blocks in the order of their reuse, and hashes of cached blocks by id.
    free_blocks: list[int] = field(default_factory=list)
    cached_blocks: dict[int, bytes] = field(default_factory=dict)

    @property
    def num_preempted(self) -> int:
        return sum(len(step["preempted_req_ids"]) for step in self.steps)


class SimulatedRollout:
    """An engine with one scheduler that steps like vLLM's engine core (`EngineCore.step_with_batch_queue`)."""

    def __init__(self, scheduler_type: type[AsyncScheduler], model: Path, setting: Setting):
        self.scheduler = make_scheduler(scheduler_type, model, setting)
        self.rounds: list[Round] = []
        self.seconds = 0.0  # in the scheduler
        self._setting = setting
        self._in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        # Requests that have neither finished nor been aborted, in the order of their arrival.
        self._unfinished: dict[str, Request] = {}
        self._token_generators: dict[str, np.random.Generator] = {}
        self._generator = np.random.default_rng(setting.seed)
        self._num_processed = 0

    def run(self) -> list[Round]:
        """Run all rounds and the steps that are still in flight after them, and return the rounds."""
        for number in range(self._setting.num_rounds):
            if self._setting.resets_cache:
                assert self.scheduler.reset_prefix_cache(), "blocks of finished requests are not free"
            self._run_round(make_requests(self._setting, number))
        while self._in_flight or self.scheduler.has_requests():
            self._step()
        return self.rounds

    def held_requests(self) -> list[str]:
        """Return names of the scheduler's collections that hold requests or steps; after `run`, none should."""
        manager = self.scheduler.kv_cache_manager
        holders = (self.scheduler, manager, manager.coordinator, *manager.coordinator.single_type_managers)
        ids = self._token_generators.keys()
        return [
            f"{type(holder).__name__}.{name}"
            for holder in holders
            for name, value in vars(holder).items()
            if isinstance(value, dict | set | list | deque)
            and any(
                isinstance(item, Request | SchedulerOutput) or (isinstance(item, str) and item in ids) for item in value
            )
        ]

    def _run_round(self, requests: list[Request]) -> None:
        self.rounds.append(Round())
        late = [one for one in requests if self._setting.late_step and int(one.request_id.split("/")[1]) % 2]
        self._add(one for one in requests if one not in late)
        num_steps = 0
        # Steps may still be in flight when the last request has finished. The next round processes them.
        while self._unfinished or late:
            num_steps += 1
            assert num_steps <= MAX_STEPS, "the rollout does not end"
            if late and (num_steps >= self._setting.late_step or not self._unfinished):
                self._add(late)
                late = []
            self._step()
        pool = self.scheduler.kv_cache_manager.block_pool
        self.rounds[-1].free_blocks = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        self.rounds[-1].cached_blocks = {
            block.block_id: block.block_hash for block in pool.blocks if block.block_hash is not None
        }

    def _add(self, requests: Iterator[Request] | list[Request]) -> None:
        for request in requests:
            self._unfinished[request.request_id] = request
            self.scheduler.add_request(request)

    def _step(self) -> None:
        """Plan a step, and process the oldest output if enough steps are in flight."""
        self._abort_some()
        is_paused = self._generator.random() < self._setting.pause_probability
        self.scheduler.set_pause_state(PauseState.PAUSED_ALL if is_paused else PauseState.UNPAUSED)
        if self.scheduler.has_requests():
            started = time.perf_counter()
            step = self.scheduler.schedule()
            self.seconds += time.perf_counter() - started
            self.rounds[-1].steps.append(_recorded(step))
            self._in_flight.append((step, self._sampled(step)))
            if len(self._in_flight) < MAX_IN_FLIGHT and (
                step.total_num_scheduled_tokens or self.scheduler.has_requests()
            ):
                return
        if self._in_flight:
            self._abort_some()
            started = time.perf_counter()
            outputs = self.scheduler.update_from_output(*self._in_flight.popleft())
            self.seconds += time.perf_counter() - started
            self._num_processed += 1
            self._take_outputs(outputs)

    def _abort_some(self) -> None:
        """Abort one request, half of the requests or all of them, with the setting's probability."""
        if not self._unfinished or self._generator.random() >= self._setting.abort_probability:
            return
        num_unfinished = len(self._unfinished)
        num_aborted = int(self._generator.choice([1, 1, 1, 1, (num_unfinished + 1) // 2, num_unfinished]))
        ids = self._generator.permutation(list(self._unfinished))[:num_aborted].tolist()
        current = self.rounds[-1]
        scheduled = {name for step, _ in self._in_flight for name in step.num_scheduled_tokens}
        current.num_aborted_in_flight += len(scheduled.intersection(ids))
        self.scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
        for name in ids:
            del self._unfinished[name]
            current.aborted[name] = current.tokens.pop(name, []), current.log_probs.pop(name, [])

    def _sampled(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Draw a token for each request that is past its prompt. A request's draws depend only on its id."""
        if not step.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        # A model runner may order its rows arbitrarily.
        names = self._generator.permutation(list(step.num_scheduled_tokens)).tolist()
        tokens, log_probs = [], []
        for name in names:
            request = self.scheduler.requests[name]
            generator = self._token_generators.setdefault(name, np.random.default_rng(list(name.encode())))
            is_sampled = request.num_computed_tokens >= request.num_tokens
            tokens.append([int(generator.integers(NUM_TOKENS))] if is_sampled else [])
            log_probs.append(generator.random(dtype=np.float32) if is_sampled else 0)
        ids = np.array([row[0] if row else 0 for row in tokens], dtype=np.int32)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=tokens,
            logprobs=LogprobsLists(
                ids[:, None], np.array(log_probs, dtype=np.float32)[:, None], np.zeros(len(names), dtype=np.int32)
            ),
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _take_outputs(self, outputs: dict[int, Any]) -> None:
        current = self.rounds[-1]
        for output in outputs[0].outputs if 0 in outputs else ():
            name = output.request_id
            current.num_outputs += 1
            current.tokens.setdefault(name, []).extend(output.new_token_ids)
            log_probs = output.new_logprobs
            current.log_probs.setdefault(name, []).extend(
                zip(log_probs.logprob_token_ids[:, 0].tolist(), log_probs.logprobs[:, 0].tolist(), strict=True)
            )
            if output.finish_reason is not None:
                current.reasons[name] = self._num_processed, output.finish_reason, output.stop_reason
                del self._unfinished[name]


def make_scheduler(scheduler_type: type[AsyncScheduler], model: Path, setting: Setting) -> AsyncScheduler:
    config = VllmConfig(
        model_config=_model_config(model, setting.max_model_len),
        scheduler_config=SchedulerConfig(
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            max_num_scheduled_tokens=setting.max_num_scheduled_tokens,
            long_prefill_token_threshold=setting.long_prefill_token_threshold,
            max_model_len=setting.max_model_len,
            is_encoder_decoder=False,
            async_scheduling=True,
        ),
        cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=setting.caching),
        device_config=DeviceConfig(device="cpu"),
    )
    config.cache_config.num_gpu_blocks = setting.num_blocks
    layer = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float32)
    # vLLM's newer model runner needs a GPU, but the scheduler's support for it does not.
    with patch.object(VllmConfig, "use_v2_model_runner", True):
        return scheduler_type(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(setting.num_blocks, [], [KVCacheGroupSpec(["layer"], layer)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=False,
        )


@cache
def _model_config(model: Path, max_model_len: int) -> ModelConfig:
    return ModelConfig(model=str(model), dtype="float32", max_model_len=max_model_len)


def make_requests(setting: Setting, round_number: int) -> list[Request]:
    """Return requests ROUND/GROUP/NUMBER. Prompts are the same in all rounds, so that a kept cache has hits."""
    hasher = get_request_block_hasher(BLOCK_SIZE, _HASH) if setting.caching else None
    params = SamplingParams(
        min_tokens=setting.min_tokens,
        max_tokens=setting.max_tokens,
        ignore_eos=setting.ignore_eos,
        stop_token_ids=list(setting.stop_token_ids),
        logprobs=0,
        detokenize=False,
    )
    params.update_from_generation_config({}, EOS)
    rng = np.random.default_rng(0)
    requests = []
    for group in range(setting.num_requests // GROUP_SIZE):
        shortest = 1 if setting.prompt_lengths_differ else setting.prompt_length
        prompt = rng.integers(1000, size=rng.integers(shortest, setting.prompt_length, endpoint=True)).tolist()
        for number in range(GROUP_SIZE):
            name = f"{round_number}/{group}/{number}"
            requests.append(Request(name, list(prompt), params, None, block_hasher=hasher))
    return requests


def _recorded(step: SchedulerOutput) -> dict[str, Any]:
    """Return all inputs of a step for the model runner."""
    # Only vLLM's older model runner reads num_common_prefix_blocks.
    record = {one.name: getattr(step, one.name) for one in fields(step) if one.name != "num_common_prefix_blocks"}
    record["num_scheduled_tokens"] = list(step.num_scheduled_tokens.items())
    record["scheduled_new_reqs"] = [
        # A copy, because the scheduler appends sampled tokens to this list.
        replace(request, prefill_token_ids=list(request.prefill_token_ids))
        for request in step.scheduled_new_reqs
    ]
    return record
