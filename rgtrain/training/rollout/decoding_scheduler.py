"""A vLLM scheduler with a fast path for steps in which every request decodes one token.

Nearly all steps of a rollout are such pure decoding steps. For each token of each request, vLLM's scheduler checks
drafts, encoders, grammars and connectors, and allocates and hashes blocks of 16 tokens. That takes about 20
microseconds of one core, and small models wait for it. The fast path makes the same decisions in a third of the time.
All other steps go through vLLM's scheduler.

The fast path repeats vLLM's accounting, so it is used only with the vLLM versions that it was compared with.
"""

import functools
from collections import deque
from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request

from rgtrain.training.lifecycle.console import announce

# tests/training/rollout/test_decoding_scheduler.py passed with these versions.
VERIFIED_VLLM_VERSIONS = ("0.24.0", "0.27.1", "0.31.0")


@functools.cache
def scheduler_for_rollouts(version: str) -> type[AsyncScheduler] | None:
    """Choose the scheduler class for rollouts.

    If `version` is not verified, the job's first rank announces once that vLLM's own scheduler is used.

    Args:
        version: vLLM's version, such as "0.27.1" or "0.27.1+cpu". A local suffix (from "+" on) is ignored.

    Returns:
        A value for vLLM's `scheduler_cls`: DecodingScheduler, or None for vLLM's own scheduler.
    """
    if version.partition("+")[0] in VERIFIED_VLLM_VERSIONS:
        return DecodingScheduler
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        verified = " and ".join(VERIFIED_VLLM_VERSIONS)
        announce(f"vLLM {version} uses its own, slower scheduler for rollouts; ours is verified only with {verified}")
    return None


class DecodingScheduler(AsyncScheduler):
    """vLLM's scheduler for requests that want log-probabilities of their sampled tokens (`logprobs=0`).

    Its steps, tokens, log-probabilities, finish reasons and block pool are those of AsyncScheduler. Its outputs differ
    in two ways. Tokens of the fast path are reported together, either when their request finishes or after the next
    step that takes vLLM's path. Their `sampled_token_ranks` are zeros.
    """

    # Attributes of vLLM's scheduler, declared here for the type checker.
    finished_req_ids: set[str]
    running: list[Request]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        unsupported = (
            self.use_pp,
            self.lora_config,
            self.num_spec_tokens,
            self.num_sampled_tokens_per_step != 1,
            self.connector,
            self.ec_connector,
            # vLLM has the first attribute up to 0.30, and the second one from 0.31 on.
            getattr(self, "enable_return_routed_experts", False),
            getattr(self, "aux_output_connector", None),
            self.needs_kv_cache_zeroing,
            # Reports that vLLM adds to the outputs of each step.
            self.log_stats,
            self.kv_events_config,
            self.finished_req_ids_dict is not None,
        )
        self._has_fast_path = (
            self.use_v2_model_runner
            and not any(unsupported)
            and [type(manager) for manager in managers] == [FullAttentionManager]
            and self.kv_cache_manager.block_pool.hash_block_size == managers[0].block_size
        )
        self._block_size = managers[0].block_size
        # In-flight steps of the fast path, oldest first.
        self._fast_steps_in_flight: deque[SchedulerOutput] = deque()
        # Log-probabilities of each request's tokens that are not reported yet.
        self._unreported_log_probs: dict[str, list[float]] = {}

    def add_request(self, request: Request) -> None:
        """Add `request` to the waiting requests.

        Args:
            request: A request that wants only the log-probabilities of its sampled tokens.

        Raises:
            ValueError: The request has a feature that the fast path does not support.
        """
        feature = _unsupported_feature(request)
        if feature:
            raise ValueError(
                f"DecodingScheduler does not support {feature}, which request {request.request_id} uses; change the "
                f"request, or set vLLM's scheduler_cls to {AsyncScheduler.__module__}.{AsyncScheduler.__name__}"
            )
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plan the next step."""
        decoding, allocating = self._decodable_requests()
        return self._schedule_decoding(decoding, allocating) if decoding else super().schedule(throttle_prefills)

    def _decodable_requests(self) -> tuple[list[Request], list[Request]]:
        """Find the requests of the next step if it is a pure decoding step.

        Returns:
            The requests to decode, and those of them that take a new block or have filled one. Both lists are empty if
            the next step must take vLLM's path.
        """
        num_running, num_waiting = self.get_request_counts()
        can_admit = num_waiting and num_running < self.max_num_running_reqs
        if not self._has_fast_path or can_admit or self._inflight_prefills or self._pause_state != PauseState.UNPAUSED:
            return [], []
        block_size = self._block_size
        decoding, allocating = [], []
        for request in self.running:
            num_computed, num_in_flight = request.num_computed_tokens, request.num_output_placeholders
            num_known = len(request._all_token_ids)
            if num_known + num_in_flight != num_computed + 1:
                return [], []
            # The in-flight token is the last one by max_tokens, or by the length of the context.
            is_last = num_in_flight and num_known + 1 >= request.num_prompt_tokens + request.max_tokens
            if is_last or num_computed + 1 >= self.max_model_len:
                continue
            decoding.append(request)
            if num_computed % block_size == 0 or num_known % block_size == 0:
                allocating.append(request)
        fits = len(allocating) <= self.kv_cache_manager.block_pool.get_num_free_blocks()
        return (decoding, allocating) if fits and len(decoding) <= self.max_num_scheduled_tokens else ([], [])

    def _schedule_decoding(self, requests: list[Request], allocating: list[Request]) -> SchedulerOutput:
        """Plan a step that decodes one token of each of `requests`."""
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        # This also puts filled blocks into the prefix cache. Later would be too late if the request is aborted.
        new_blocks = {
            request.request_id: self.kv_cache_manager.allocate_slots(request, 1).get_block_ids(allow_none=True)
            for request in allocating
        }
        request_ids = [request.request_id for request in requests]
        step = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=request_ids,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=list(map(new_blocks.get, request_ids)),
                num_computed_tokens=[request.num_computed_tokens for request in requests],
                num_output_tokens=[
                    len(request._output_token_ids) + request.num_output_placeholders for request in requests
                ],
            ),
            num_scheduled_tokens=dict.fromkeys(request_ids, 1),
            total_num_scheduled_tokens=len(request_ids),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            # vLLM's newer model runner, which the fast path requires, does not read this.
            num_common_prefix_blocks=[0],
            preempted_req_ids=set(),
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
        )
        self.finished_req_ids = set()
        for request in requests:
            request.num_computed_tokens += 1
            request.num_output_placeholders += 1
            # vLLM 0.24 does not have this counter.
            request.num_in_flight_tokens = getattr(request, "num_in_flight_tokens", 0) + 1
        self._fast_steps_in_flight.append(step)
        return step

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        # A preempted request's counters restart, so vLLM must process the outputs of all in-flight steps.
        self._fast_steps_in_flight.clear()
        super()._preempt_request(*args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # The tokens of an aborted request are not needed.
        self._unreported_log_probs.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def update_from_output(self, step: SchedulerOutput, output: ModelRunnerOutput) -> dict[int, EngineCoreOutputs]:
        """Process the tokens that the model runner sampled in `step`.

        Args:
            step: The step, as `schedule` returned it.
            output: The sampled tokens and their log-probabilities.

        Returns:
            The outputs to report. The fast path's outputs belong to client 0.
        """
        if self._fast_steps_in_flight and self._fast_steps_in_flight[0] is step:
            self._fast_steps_in_flight.popleft()
            return {0: EngineCoreOutputs(outputs=self._process_decoded_tokens(step, output))}
        unreported = [self._merged_output(self.requests[request_id]) for request_id in self._unreported_log_probs]
        self._unreported_log_probs.clear()
        outputs = super().update_from_output(step, output)
        if unreported:
            outputs.setdefault(0, EngineCoreOutputs()).outputs[:0] = unreported
        return outputs

    def _process_decoded_tokens(self, step: SchedulerOutput, output: ModelRunnerOutput) -> list[EngineCoreOutput]:
        """Append each request's token, and return the merged outputs of the requests that finished."""
        log_probs = output.logprobs.logprobs[:, 0].tolist()
        sampled, row_of, block_size = output.sampled_token_ids, output.req_id_to_index, self._block_size
        finished, outputs = set(), []
        for request_id in step.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None:
                # It finished or was aborted while this step was in flight.
                continue
            row = row_of[request_id]
            [token] = sampled[row]
            tokens = request._all_token_ids
            tokens.append(token)
            request._output_token_ids.append(token)
            request.num_output_placeholders -= 1
            request.num_in_flight_tokens -= 1
            self._unreported_log_probs.setdefault(request_id, []).append(log_probs[row])
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
                outputs.append(self._merged_output(request))
                self._free_request(request)
                finished.add(request)
        if finished:
            self.running = remove_all(self.running, finished)
        return outputs

    def _merged_output(self, request: Request) -> EngineCoreOutput:
        """Merge the tokens of `request` that are not reported yet into one output."""
        log_probs = np.array(self._unreported_log_probs[request.request_id], dtype=np.float32)[:, None]
        tokens = request._output_token_ids[-len(log_probs) :]
        return EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=tokens,
            new_logprobs=LogprobsLists(np.array(tokens)[:, None], log_probs, np.zeros(len(tokens), dtype=np.int32)),
            finish_reason=request.get_finished_reason(),
            stop_reason=request.stop_reason,
        )


def _unsupported_feature(request: Request) -> str | None:
    """Return the name of a feature of `request` that the fast path does not support, or None."""
    params = request.sampling_params
    if params is None:
        return "pooling"
    features = {
        f"logprobs={params.logprobs} (only 0 works)": params.num_logprobs != 0,
        "logprob_token_ids": params.logprob_token_ids,
        # The fast path reports tokens too late for vLLM's search for stop strings.
        "stop strings": params.stop,
        "repetition_detection": params.repetition_detection,
        "structured output": request.use_structured_output,
        "multi-modal input": request.has_encoder_inputs,
        "streamed input": request.resumable,
        "client indices other than 0": request.client_index,
        "trace headers": request.trace_headers,
    }
    return next((feature for feature, is_used in features.items() if is_used), None)
