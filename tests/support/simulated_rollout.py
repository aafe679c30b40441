"""A rollout by one of vLLM's schedulers, without a model: what is sampled is drawn."""

import time
from collections import deque
from dataclasses import dataclass, field
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
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16
GROUP_SIZE = 8
EOS = 7
# Few, so that many a request ends by EOS before its time.
NUM_TOKENS = 50
# More than any rollout here takes: a scheduler that loses count of a request would plan empty steps without end.
MAX_STEPS = 5000


@dataclass(frozen=True)
class Setting:
    num_requests: int = 48
    prompt_length: int = 84
    max_tokens: int = 40
    ignore_eos: bool = False
    num_blocks: int = 50_000
    max_num_seqs: int = 1024
    max_model_len: int = 256
    caching: bool = True
    # Every other group is added at this step, while the others decode.
    late_step: int = 0


@dataclass
class Seen:
    """What a scheduler asked of the runner, step by step, what came of each request, and the time it took."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    log_probs: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, tuple] = field(default_factory=dict)
    num_outputs: int = 0
    # Free and cached blocks at the end.
    pool: tuple[int, int] = (0, 0)
    seconds: float = 0

    @property
    def num_preempted(self) -> int:
        return sum(len(step["preempted"]) for step in self.steps)


def rolled_out(scheduler_type: type[AsyncScheduler], model: Path, setting: Setting) -> Seen:
    """All of a rollout, two steps underway at a time, as vLLM's engine has them."""
    scheduler, seen = make_scheduler(scheduler_type, model, setting), Seen()
    requests = make_requests(setting)
    late = [request for request in requests if setting.late_step and int(request.request_id.split("/")[0]) % 2]
    for request in requests:
        if request not in late:
            scheduler.add_request(request)
    generators: dict[str, np.random.Generator] = {}
    underway: deque = deque()
    num_steps = 0
    while scheduler.has_requests() or underway:
        num_steps += 1
        assert num_steps <= MAX_STEPS, "the rollout does not end"
        if num_steps == setting.late_step:
            for request in late:
                scheduler.add_request(request)
        started = time.perf_counter()
        step = scheduler.schedule()
        seen.seconds += time.perf_counter() - started
        if step.total_num_scheduled_tokens:
            seen.steps.append(_asked_for(step))
            underway.append((step, _sampled(step, scheduler, generators)))
        if len(underway) == 2 or (underway and not step.total_num_scheduled_tokens):
            started = time.perf_counter()
            outputs = scheduler.update_from_output(*underway.popleft())
            seen.seconds += time.perf_counter() - started
            _take_in(outputs, seen)
    pool = scheduler.kv_cache_manager.block_pool
    seen.pool = pool.get_num_free_blocks(), len(pool.cached_block_hash_to_block)
    return seen


def make_scheduler(scheduler_type: type[AsyncScheduler], model: Path, setting: Setting) -> AsyncScheduler:
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), dtype="float32", max_model_len=setting.max_model_len),
        scheduler_config=SchedulerConfig(
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=16384,
            max_model_len=setting.max_model_len,
            is_encoder_decoder=False,
            async_scheduling=True,
        ),
        cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=setting.caching),
        device_config=DeviceConfig(device="cpu"),
    )
    config.cache_config.num_gpu_blocks = setting.num_blocks
    layer = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float32)
    # vLLM's newer runner needs a GPU, but its side of the scheduler doesn't.
    with patch.object(VllmConfig, "use_v2_model_runner", True):
        return scheduler_type(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(setting.num_blocks, [], [KVCacheGroupSpec(["layer"], layer)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=False,
        )


def make_requests(setting: Setting) -> list[Request]:
    """Requests in groups that have a prompt in common."""
    hash_of = get_hash_fn_by_name("sha256")
    init_none_hash(hash_of)
    hasher = get_request_block_hasher(BLOCK_SIZE, hash_of) if setting.caching else None
    params = SamplingParams(max_tokens=setting.max_tokens, ignore_eos=setting.ignore_eos, logprobs=0, detokenize=False)
    params.update_from_generation_config({}, EOS)
    rng = np.random.default_rng(0)
    requests = []
    for group in range(setting.num_requests // GROUP_SIZE):
        prompt = rng.integers(1000, size=setting.prompt_length).tolist()
        for number in range(GROUP_SIZE):
            requests.append(Request(f"{group}/{number}", list(prompt), params, None, block_hasher=hasher))
    return requests


def _asked_for(step: SchedulerOutput) -> dict[str, Any]:
    known = step.scheduled_cached_reqs
    return {
        "num_tokens": step.num_scheduled_tokens,
        "finished": step.finished_req_ids,
        "new": [(request.req_id, request.block_ids) for request in step.scheduled_new_reqs],
        "known": (known.req_ids, known.new_block_ids, known.num_computed_tokens, known.num_output_tokens),
        "preempted": step.preempted_req_ids,
    }


def _sampled(
    step: SchedulerOutput, scheduler: AsyncScheduler, generators: dict[str, np.random.Generator]
) -> ModelRunnerOutput:
    """A token of each request that is past its prompt; which ones depends on the request alone."""
    names = sorted(step.num_scheduled_tokens, key=step.num_scheduled_tokens.get)
    tokens, log_probs = [], []
    for name in names:
        request = scheduler.requests[name]
        rng = generators.setdefault(name, np.random.default_rng(list(name.encode())))
        decodes = request.num_computed_tokens >= request.num_tokens
        tokens.append([int(rng.integers(NUM_TOKENS))] if decodes else [])
        log_probs.append(rng.random(dtype=np.float32) if decodes else 0)
    column = np.array(log_probs, dtype=np.float32)[:, None]
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: row for row, name in enumerate(names)},
        sampled_token_ids=tokens,
        logprobs=LogprobsLists(np.zeros_like(column, dtype=np.int32), column, np.zeros(len(names))),
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def _take_in(outputs: dict[int, Any], seen: Seen) -> None:
    for output in outputs[0].outputs if 0 in outputs else ():
        seen.num_outputs += 1
        seen.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
        seen.log_probs.setdefault(output.request_id, []).extend(output.new_logprobs.logprobs[:, 0].tolist())
        if output.finish_reason is not None:
            seen.reasons[output.request_id] = output.finish_reason, output.stop_reason
