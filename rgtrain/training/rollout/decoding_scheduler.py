"""vLLM's scheduler, with a short way for steps in which each request decodes one token: nearly all of a rollout's.

For every token of every request vLLM goes through drafts, encoders, grammars and connectors, and allocates and hashes
blocks of 16 tokens: some 20 microseconds of one core, which small models wait for. Here a step that decodes only is
planned and accounted for in a third of that; all other steps are vLLM's own. What a request decoded is handed out when
it is finished, in one piece.
"""

from collections import deque
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request


class DecodingScheduler(AsyncScheduler):
    """For requests that ask for their sampled tokens' log-probabilities (`logprobs=0`) and nothing out of the way."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        out_of_the_way = (self.use_pp, self.lora_config, self.num_spec_tokens, self.connector, self.ec_connector)
        reported = (self.log_stats, self.kv_events_config, self.finished_req_ids_dict is not None)
        self._has_short_way = (
            self.use_v2_model_runner
            and not any((*out_of_the_way, *reported, self.needs_kv_cache_zeroing))
            and [type(manager) for manager in managers] == [FullAttentionManager]
        )
        self._blocks = managers[0]
        # Steps planned the short way that are still underway, oldest first.
        self._underway: deque[SchedulerOutput] = deque()
        # By request, the log-probabilities of tokens that have not been handed out yet.
        self._kept: dict[str, list[float]] = {}

    def add_request(self, request: Request) -> None:
        """Refuse what the short way leaves out."""
        params = request.sampling_params
        assert params is not None and params.num_logprobs == 0 and params.repetition_detection is None
        assert not (request.use_structured_output or request.has_encoder_inputs or request.resumable)
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step."""
        decoding, growing = self._ready()
        return self._decode(decoding, growing) if decoding else super().schedule(throttle_prefills)

    def _ready(self) -> tuple[list[Request], list[Request]]:
        """All requests, if each can decode its next token now, and those of them that need a block for it."""
        waits = (self.waiting or self.skipped_waiting) and len(self.running) < self.max_num_running_reqs
        if not self._has_short_way or waits or self._pause_state != PauseState.UNPAUSED:
            return [], []
        blocks_of, block_size = self._blocks.req_to_blocks, self._blocks.block_size
        decoding, growing = [], []
        for request in self.running:
            num_computed, num_underway = request.num_computed_tokens, request.num_output_placeholders
            num_known = len(request._all_token_ids)
            if num_known + num_underway != num_computed + 1:
                return [], []
            # What is underway is its last token, or the last that there is a place for.
            is_last = num_underway and num_known + 1 >= request.num_prompt_tokens + request.max_tokens
            if is_last or num_computed + 1 >= self.max_model_len:
                continue
            decoding.append(request)
            if len(blocks_of[request.request_id]) * block_size <= num_computed:
                growing.append(request)
        fits = len(growing) <= self.kv_cache_manager.block_pool.get_num_free_blocks()
        return (decoding, growing) if fits and len(decoding) <= self.max_num_scheduled_tokens else ([], [])

    def _decode(self, requests: list[Request], growing: list[Request]) -> SchedulerOutput:
        """A step that decodes a token of each of `requests`."""
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        new_blocks = {
            request.request_id: self.kv_cache_manager.allocate_slots(request, 1).get_block_ids() for request in growing
        }
        names = [request.request_id for request in requests]
        step = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=names,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=list(map(new_blocks.get, names)),
                num_computed_tokens=[request.num_computed_tokens for request in requests],
                num_output_tokens=[
                    len(request._output_token_ids) + request.num_output_placeholders for request in requests
                ],
            ),
            num_scheduled_tokens=dict.fromkeys(names, 1),
            total_num_scheduled_tokens=len(names),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            # Of no use to the runner that the short way is for.
            num_common_prefix_blocks=[0],
            preempted_req_ids=set(),
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
        )
        self.finished_req_ids = set()
        for request in requests:
            request.num_computed_tokens += 1
            request.num_output_placeholders += 1
            # vLLM 0.24 doesn't count these, later ones do.
            request.num_in_flight_tokens = getattr(request, "num_in_flight_tokens", 0) + 1
        self._underway.append(step)
        return step

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        # What is underway belongs to requests whose counts begin anew: vLLM knows what to do with it.
        self._underway.clear()
        super()._preempt_request(*args, **kwargs)

    def update_from_output(self, step: SchedulerOutput, output: ModelRunnerOutput) -> dict[int, EngineCoreOutputs]:
        """Take in what was sampled in `step`; returns what is handed out."""
        if self._underway and self._underway[0] is step:
            self._underway.popleft()
            return {0: EngineCoreOutputs(outputs=self._take_in(step, output))}
        kept = [self._handed_out(self.requests[name]) for name in self._kept if name in self.requests]
        self._kept.clear()
        outputs = super().update_from_output(step, output)
        if kept:
            outputs.setdefault(0, EngineCoreOutputs()).outputs[:0] = kept
        return outputs

    def _take_in(self, step: SchedulerOutput, output: ModelRunnerOutput) -> list[EngineCoreOutput]:
        log_probs = output.logprobs.logprobs[:, 0].tolist()
        sampled, row_of, block_size = output.sampled_token_ids, output.req_id_to_index, self._blocks.block_size
        finished, handed_out = set(), []
        for name in step.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is None:
                # Finished a step earlier, when this one had been planned.
                continue
            row = row_of[name]
            [token] = sampled[row]
            tokens = request._all_token_ids
            tokens.append(token)
            request._output_token_ids.append(token)
            request.num_output_placeholders -= 1
            request.num_in_flight_tokens -= 1
            self._kept.setdefault(name, []).append(log_probs[row])
            if len(tokens) % block_size == 0:
                request.update_block_hashes()
            num_final = request.num_computed_tokens - request.num_output_placeholders
            if num_final % block_size == 0:
                self.kv_cache_manager.cache_blocks(request, num_final)
            may_stop = (
                token in request.sampling_params.all_stop_token_ids
                or len(request._output_token_ids) >= request.max_tokens
                or len(tokens) >= self.max_model_len
            )
            if may_stop and check_stop(request, self.max_model_len):
                handed_out.append(self._handed_out(request))
                del self._kept[name]
                self._free_request(request)
                finished.add(request)
        if finished:
            self.running = remove_all(self.running, finished)
        return handed_out

    def _handed_out(self, request: Request) -> EngineCoreOutput:
        """All that is kept of `request`."""
        log_probs = np.array(self._kept[request.request_id], dtype=np.float32)[:, None]
        tokens = request._output_token_ids[-len(log_probs) :]
        return EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=tokens,
            new_logprobs=LogprobsLists(np.array(tokens)[:, None], log_probs, np.zeros(len(tokens), dtype=np.int32)),
            finish_reason=request.get_finished_reason(),
            stop_reason=request.stop_reason,
        )
