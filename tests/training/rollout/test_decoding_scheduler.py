"""The fast path makes the same decisions as vLLM's scheduler, down to single blocks."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import vllm
from support.simulated_rollout import BLOCK_SIZE, Round, Setting, SimulatedRollout, make_scheduler
from vllm import PoolingParams, SamplingParams
from vllm.config import SchedulerConfig
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import Request

from rgtrain.training.rollout.decoding_scheduler import (
    VERIFIED_VLLM_VERSIONS,
    DecodingScheduler,
    scheduler_for_rollouts,
)


@pytest.mark.parametrize(
    ("setting", "preempts"),
    [
        (Setting(), False),
        (Setting(ignore_eos=True), False),
        (Setting(caching=False), False),
        (Setting(max_num_seqs=16), False),
        (Setting(late_step=12), False),
        (Setting(late_step=12, ignore_eos=True, num_blocks=110), True),
        # The last block is full when the last token is sampled.
        (Setting(max_tokens=29, ignore_eos=True), False),
        # The context ends before max_tokens.
        (Setting(prompt_length=240), False),
        (Setting(num_blocks=80, max_tokens=60), True),
        (Setting(num_blocks=110, max_tokens=60, ignore_eos=True, caching=False), True),
    ],
    ids=[
        "eos",
        "full_length",
        "uncached",
        "waiting",
        "joining",
        "joining_preempted",
        "full_block",
        "context",
        "preempted",
        "preempted_uncached",
    ],
)
def test_the_fast_path_makes_the_same_rollout_as_vllm(tiny_model, setting, preempts):
    [theirs], [ours] = assert_equal_rollouts(tiny_model, setting)
    assert len(ours.reasons) == setting.num_requests
    assert (ours.num_preempted > 0) == preempts
    assert ours.num_outputs < theirs.num_outputs
    if not preempts and setting.max_num_seqs >= setting.num_requests and not setting.late_step:
        # One output for the first token, which takes vLLM's path, and one for all other tokens.
        assert ours.num_outputs <= 2 * setting.num_requests


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("num_blocks", [1000, 110], ids=["many_blocks", "few_blocks"])
@pytest.mark.parametrize("pause_probability", [0, 0.3], ids=["", "paused"])
def test_aborted_requests_leave_the_same_rollout_as_with_vllm(tiny_model, caching, num_blocks, pause_probability):
    setting = Setting(
        num_rounds=3,
        resets_cache=False,
        caching=caching,
        num_blocks=num_blocks,
        abort_probability=0.05,
        pause_probability=pause_probability,
        seed=1,
    )
    _, ours = assert_equal_rollouts(tiny_model, setting)
    assert sum(one.num_aborted_in_flight for one in ours)
    assert sum(len(one.reasons) for one in ours)
    for one in ours:
        assert len(one.reasons) + len(one.aborted) == setting.num_requests


@pytest.mark.parametrize("first_seed", range(0, 50, 10))
def test_random_settings_give_the_same_rollout_as_vllm(tiny_model, first_seed):
    for seed in range(first_seed, first_seed + 10):
        assert_equal_rollouts(tiny_model, random_setting(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(50, 1650, 100))
def test_many_more_random_settings_give_the_same_rollout_as_vllm(tiny_model, first_seed):
    for seed in range(first_seed, first_seed + 100):
        assert_equal_rollouts(tiny_model, random_setting(seed))


def test_random_settings_reach_every_case(tiny_model):
    reached: Counter[str] = Counter()
    for seed in range(25):
        setting = random_setting(seed)
        for number, one in enumerate(SimulatedRollout(DecodingScheduler, tiny_model, setting).run()):
            reached.update(cases_of(one, setting, is_first=number == 0))
    assert min(reached.values()) >= 3, reached


def cases_of(one: Round, setting: Setting, *, is_first: bool) -> dict[str, int]:
    """Count the cases that random settings should reach, in a round of DecodingScheduler."""
    reasons = Counter(reason for _, reason, _ in one.reasons.values())
    ended_by_context = [
        name
        for name, (_, reason, _) in one.reasons.items()
        if reason == FinishReason.LENGTH and len(one.tokens[name]) < setting.max_tokens
    ]
    # Without the fast path, every output has one token.
    num_tokens = sum(map(len, one.tokens.values())) + sum(len(tokens) for tokens, _ in one.aborted.values())
    return {
        "fast path": num_tokens - one.num_outputs,
        "preemption": one.num_preempted,
        "abort in flight": one.num_aborted_in_flight,
        "abort with tokens": sum(bool(tokens) for tokens, _ in one.aborted.values()),
        "chunked prefill": sum(
            request.num_computed_tokens + dict(step["num_scheduled_tokens"])[request.req_id]
            < len(request.prefill_token_ids)
            for step in one.steps
            for request in step["scheduled_new_reqs"]
        ),
        "hit on an earlier round": 0
        if is_first or setting.resets_cache
        else sum(request.num_computed_tokens > 0 for step in one.steps[:2] for request in step["scheduled_new_reqs"]),
        "end of text": sum(stop is None for _, reason, stop in one.reasons.values() if reason == FinishReason.STOP),
        "stop token": sum(stop is not None for _, _, stop in one.reasons.values()),
        "max_tokens": reasons[FinishReason.LENGTH] - len(ended_by_context),
        "end of the context": len(ended_by_context),
    }


def random_setting(seed: int) -> Setting:
    rng = random.Random(seed)
    max_model_len = rng.choice([64, 128, 256])
    prompt_length = rng.randint(1, max_model_len - 2)
    max_tokens = rng.randint(1, 70)
    longest = min(prompt_length + max_tokens, max_model_len)
    # One request always fits, beside the block that vLLM keeps for itself.
    few_blocks = -(-longest // BLOCK_SIZE) * rng.randint(1, 8) + 1
    max_num_seqs = rng.choice([3, 16, 64])
    return Setting(
        num_requests=8 * rng.randint(1, 5),
        num_rounds=rng.randint(1, 3),
        resets_cache=rng.random() < 0.5,
        prompt_length=prompt_length,
        prompt_lengths_differ=rng.random() < 0.5,
        # vLLM never ends a request that reaches the end of its context before min_tokens.
        min_tokens=rng.choice([0, rng.randint(0, longest - prompt_length)]),
        max_tokens=max_tokens,
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=tuple(rng.sample(range(10), rng.choice([0, 0, 1, 2]))),
        num_blocks=rng.choice([few_blocks, 1000]),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_seqs, rng.choice([20, 50, 150, 4096])),
        max_num_scheduled_tokens=rng.choice([None, None, None, rng.randint(2, 24)]),
        long_prefill_token_threshold=rng.choice([0, 0, 5]),
        max_model_len=max_model_len,
        caching=rng.random() < 0.7,
        late_step=rng.choice([0, rng.randint(2, 40)]),
        abort_probability=rng.choice([0, 0.01, 0.1]),
        pause_probability=rng.choice([0, 0, 0.1, 0.3]),
        seed=seed,
    )


def assert_equal_rollouts(model: Path, setting: Setting) -> tuple[list[Round], list[Round]]:
    """Run `setting` with vLLM's scheduler and with ours, and return the rounds of both."""
    rollouts = [SimulatedRollout(scheduler, model, setting) for scheduler in (AsyncScheduler, DecodingScheduler)]
    theirs, ours = [rollout.run() for rollout in rollouts]
    for number, (their_round, our_round) in enumerate(zip(theirs, ours, strict=True)):
        for name in (
            "steps",
            "tokens",
            "log_probs",
            "reasons",
            "num_aborted_in_flight",
            "free_blocks",
            "cached_blocks",
        ):
            # Compared outside of assert, because pytest would take minutes to describe a difference.
            is_equal = getattr(our_round, name) == getattr(their_round, name)
            assert is_equal, f"{name} of round {number} differ: {setting}"
        # vLLM reports an aborted request's tokens one by one until the abort, and we report some of them or none.
        assert our_round.aborted.keys() == their_round.aborted.keys(), setting
        for name, (tokens, log_probs) in our_round.aborted.items():
            their_tokens, their_log_probs = their_round.aborted[name]
            assert their_tokens[: len(tokens)] == tokens, setting
            assert their_log_probs[: len(log_probs)] == log_probs, setting
    for rollout in rollouts:
        assert not rollout.held_requests(), setting
        assert not rollout.scheduler.requests, setting
    return theirs, ours


@pytest.mark.parametrize(
    ("params", "arguments", "feature"),
    [
        ({"logprobs": None}, {}, "logprobs=None"),
        ({"logprobs": 2}, {}, "logprobs=2"),
        ({"logprob_token_ids": [3]}, {}, "logprob_token_ids"),
        ({"stop": ["end"], "detokenize": True}, {}, "stop strings"),
        (
            {"repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=3)},
            {},
            "repetition_detection",
        ),
        ({"structured_outputs": StructuredOutputsParams(regex="a+")}, {}, "structured output"),
        ({}, {"mm_features": [object()]}, "multi-modal input"),
        ({}, {"resumable": True}, "streamed input"),
        ({}, {"client_index": 1}, "client indices other than 0"),
        ({}, {"trace_headers": {"traceparent": "00-1-2-01"}}, "trace headers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_with_an_unsupported_feature_is_refused_by_name(tiny_model, params, arguments, feature):
    scheduler = make_scheduler(DecodingScheduler, tiny_model, Setting())
    sampling = SamplingParams(**{"max_tokens": 4, "logprobs": 0, "detokenize": False} | params)
    with pytest.raises(ValueError, match=f"does not support {feature}.*, which request 0 uses"):
        scheduler.add_request(Request("0", [1, 2], sampling, None, **arguments))
    assert not scheduler.has_requests()


def test_a_pooling_request_is_refused_by_name(tiny_model):
    scheduler = make_scheduler(DecodingScheduler, tiny_model, Setting())
    with pytest.raises(ValueError, match="does not support pooling, which request 0 uses"):
        scheduler.add_request(Request("0", [1, 2], None, PoolingParams(task="embed")))


def test_the_installed_vllm_is_verified():
    assert vllm.__version__.partition("+")[0] in VERIFIED_VLLM_VERSIONS
    assert scheduler_for_rollouts(vllm.__version__) is DecodingScheduler


@pytest.mark.parametrize("version", [*VERIFIED_VLLM_VERSIONS, "0.27.1+cpu", "0.24.0+cu130"])
def test_a_verified_vllm_uses_the_fast_path_without_an_announcement(capsys, version):
    assert engine_scheduler(version) is DecodingScheduler
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("version", ["0.24.1", "0.27.10", "0.27.1rc1", "1.0.0+cpu"])
def test_any_other_vllm_keeps_its_scheduler_and_this_is_announced_once(capsys, version):
    scheduler_for_rollouts.cache_clear()
    assert [engine_scheduler(version) for _ in range(3)] == [AsyncScheduler] * 3
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"[rgtrain] vLLM {version} ")
    assert all(verified in line for verified in VERIFIED_VLLM_VERSIONS)


def test_only_the_first_rank_announces_that_vllm_keeps_its_scheduler(capsys, monkeypatch):
    scheduler_for_rollouts.cache_clear()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert engine_scheduler("0.99.0") is AsyncScheduler
    assert capsys.readouterr().out == ""


def engine_scheduler(version: str) -> type:
    """Return the class of the scheduler that vLLM's engine creates."""
    config = SchedulerConfig(
        max_model_len=64,
        is_encoder_decoder=False,
        async_scheduling=True,
        scheduler_cls=scheduler_for_rollouts(version),
    )
    return config.get_scheduler_cls()
