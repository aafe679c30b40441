"""The short way plans and accounts for what vLLM's own scheduler does, to the block."""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from rgtrain.verl_plugin.decoding_scheduler import DecodingScheduler

BLOCK_SIZE = 16
EOS = 7


@dataclass
class Setting:
    num_requests: int = 48
    prompt_length: int = 84
    max_tokens: int = 40
    ignore_eos: bool = False
    num_blocks: int = 10_000
    max_num_seqs: int = 1024
    max_model_len: int = 256
    caching: bool = True


@dataclass
class Seen:
    """What a scheduler asked of the runner, step by step, and what came of each request."""

    steps: list[dict] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    log_probs: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, tuple] = field(default_factory=dict)
    num_outputs: int = 0
    num_preempted: int = 0
    pool: tuple[int, int] = (0, 0)


def make(scheduler: type, model: str, setting: Setting, monkeypatch) -> AsyncScheduler:
    config = VllmConfig(
        model_config=ModelConfig(model=model, dtype="float32", max_model_len=setting.max_model_len),
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
    # The runner that the short way is for needs a GPU; its side of the scheduler doesn't.
    with monkeypatch.context() as patch:
        patch.setattr(VllmConfig, "use_v2_model_runner", True)
        return scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(setting.num_blocks, [], [KVCacheGroupSpec(["layer"], layer)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=False,
        )


def add_requests(scheduler: AsyncScheduler, setting: Setting) -> None:
    """Groups of eight with a prompt in common."""
    hash_of = get_hash_fn_by_name("sha256")
    init_none_hash(hash_of)
    params = SamplingParams(max_tokens=setting.max_tokens, ignore_eos=setting.ignore_eos, logprobs=0, detokenize=False)
    params.update_from_generation_config({}, EOS)
    rng = np.random.default_rng(0)
    for group in range(setting.num_requests // 8):
        prompt = rng.integers(1000, size=setting.prompt_length).tolist()
        for number in range(8):
            hasher = get_request_block_hasher(BLOCK_SIZE, hash_of) if setting.caching else None
            scheduler.add_request(Request(f"{group}/{number}", list(prompt), params, None, block_hasher=hasher))


def asked_for(step) -> dict:
    known = step.scheduled_cached_reqs
    return {
        "num_tokens": step.num_scheduled_tokens,
        "finished": step.finished_req_ids,
        "new": [(request.req_id, request.block_ids) for request in step.scheduled_new_reqs],
        "known": (known.req_ids, known.new_block_ids, known.num_computed_tokens, known.num_output_tokens),
        "preempted": step.preempted_req_ids,
    }


def answer(step, scheduler: AsyncScheduler, sampled: dict[str, np.random.Generator]) -> ModelRunnerOutput:
    """A token for each request that is past its prompt, the same whatever the steps are."""
    names = sorted(step.num_scheduled_tokens, key=step.num_scheduled_tokens.get)
    rows, log_probs = [], []
    for name in names:
        request = scheduler.requests[name]
        rng = sampled.setdefault(name, np.random.default_rng(list(name.encode())))
        decodes = request.num_computed_tokens >= request.num_tokens
        rows.append([int(rng.integers(50))] if decodes else [])
        log_probs.append(rng.random(dtype=np.float32) if decodes else 0)
    columns = np.array(log_probs, dtype=np.float32)[:, None]
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: row for row, name in enumerate(names)},
        sampled_token_ids=rows,
        logprobs=LogprobsLists(np.zeros_like(columns, dtype=np.int32), columns, np.zeros(len(names))),
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def rolled_out(scheduler_type: type, model: str, setting: Setting, monkeypatch) -> Seen:
    """A rollout by the scheduler, two steps underway at a time, as vLLM's engine has them."""
    scheduler, seen, sampled = make(scheduler_type, model, setting, monkeypatch), Seen(), {}
    add_requests(scheduler, setting)
    underway: deque = deque()
    while scheduler.has_requests() or underway:
        step = scheduler.schedule()
        if step.total_num_scheduled_tokens:
            seen.steps.append(asked_for(step))
            underway.append((step, answer(step, scheduler, sampled)))
        if len(underway) == 2 or not step.total_num_scheduled_tokens:
            took_in(scheduler.update_from_output(*underway.popleft()), seen) if underway else None
    pool = scheduler.kv_cache_manager.block_pool
    seen.pool = pool.get_num_free_blocks(), len(pool.cached_block_hash_to_block)
    seen.num_preempted = sum(len(step["preempted"]) for step in seen.steps)
    return seen


def took_in(outputs: dict, seen: Seen) -> None:
    for output in outputs.get(0, SimpleNamespace(outputs=[])).outputs:
        seen.num_outputs += 1
        seen.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
        seen.log_probs.setdefault(output.request_id, []).extend(output.new_logprobs.logprobs[:, 0].tolist())
        if output.finish_reason is not None:
            seen.reasons[output.request_id] = output.finish_reason, output.stop_reason


@pytest.mark.parametrize(
    ("setting", "preempts"),
    [
        (Setting(), False),
        (Setting(ignore_eos=True), False),
        (Setting(caching=False), False),
        (Setting(max_num_seqs=16), False),
        # The context ends before max_tokens.
        (Setting(prompt_length=240), False),
        (Setting(num_blocks=80, max_tokens=60), True),
        (Setting(num_blocks=110, max_tokens=60, ignore_eos=True, caching=False), True),
    ],
    ids=lambda value: "" if isinstance(value, bool) else str(value).removeprefix("Setting"),
)
def test_every_step_and_every_answer_is_as_by_vllm(tiny_model, monkeypatch, setting, preempts):
    theirs = rolled_out(AsyncScheduler, str(tiny_model), setting, monkeypatch)
    ours = rolled_out(DecodingScheduler, str(tiny_model), setting, monkeypatch)
    assert len(ours.reasons) == setting.num_requests
    assert (ours.num_preempted > 0) == preempts
    for name in ("steps", "tokens", "log_probs", "reasons", "pool"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.num_outputs < theirs.num_outputs
    if not preempts and setting.max_num_seqs >= setting.num_requests:
        # The first token, which vLLM's own way hands out, and all others in one piece.
        assert ours.num_outputs <= 2 * setting.num_requests


def test_requests_it_was_not_made_for_are_refused(tiny_model, monkeypatch):
    scheduler = make(DecodingScheduler, str(tiny_model), Setting(), monkeypatch)
    with pytest.raises(AssertionError):
        scheduler.add_request(Request("0", [1, 2], SamplingParams(max_tokens=4), None))
