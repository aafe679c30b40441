"""The short way plans and accounts for what vLLM's own scheduler does, to the block."""

import pytest
from support.simulated_rollout import Setting, make_scheduler, rolled_out
from vllm import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request

from rgtrain.training.rollout.decoding_scheduler import DecodingScheduler


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
def test_every_step_and_every_answer_is_as_by_vllm(tiny_model, setting, preempts):
    theirs = rolled_out(AsyncScheduler, tiny_model, setting)
    ours = rolled_out(DecodingScheduler, tiny_model, setting)
    assert len(ours.reasons) == setting.num_requests
    assert (ours.num_preempted > 0) == preempts
    for name in ("steps", "tokens", "log_probs", "reasons", "pool"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.num_outputs < theirs.num_outputs
    if not preempts and setting.max_num_seqs >= setting.num_requests and not setting.late_step:
        # The first token, which vLLM's own way hands out, and all others in one piece.
        assert ours.num_outputs <= 2 * setting.num_requests


def test_requests_it_was_not_made_for_are_refused(tiny_model):
    scheduler = make_scheduler(DecodingScheduler, tiny_model, Setting())
    with pytest.raises(AssertionError):
        scheduler.add_request(Request("0", [1, 2], SamplingParams(max_tokens=4), None))
