"""vLLM inside the training worker: one process, one CUDA context, and weights that need no sending.

verl puts vLLM behind a server, with processes of its own: every request, token and weight then goes from process to
process, which for small models takes several times as long as generating. Here the worker steps vLLM's engine core
itself. Ranks of a tensor-parallel group step theirs together (vLLM's `external_launcher`).
"""

import asyncio
import gc
import itertools
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import vllm
from verl.utils.device import get_device_name
from verl.workers.rollout.base import BaseRollout
from vllm import EngineArgs, SamplingParams, TokensPrompt
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.llm_engine import LLMEngine

from rgtrain.training.rollout.channel import TRAINER
from rgtrain.training.rollout.decoding_scheduler import scheduler_for_rollouts
from rgtrain.training.rollout.groups import Group
from rgtrain.upstream.gpu_vllm import warm_up_for
from rgtrain.upstream.replacements import apply

# Ranks of a tensor-parallel group agree once in so many decoding steps on the calls that they take in.
_STEPS_BETWEEN_AGREEMENTS = 8


@dataclass(eq=False)
class _Call:
    """The arguments of one call of `generate`, and the number of its groups that are not whole yet."""

    prompts: Sequence[tuple[str, list[int]]]
    sampling: Mapping[str, Any]
    seed: int
    finished: Callable[[list[Group]], None]
    num_unfinished: int = 0


@dataclass
class _PendingGroup:
    uid: str
    call: _Call
    completions: list["_Completion"] = field(default_factory=list)
    num_unfinished: int = 0


@dataclass
class _Completion:
    group: _PendingGroup
    tokens: list[int] = field(default_factory=list)
    # Of each output, the log-probabilities of its tokens in the first column.
    log_probs: list[np.ndarray] = field(default_factory=list)


class VllmRollout(BaseRollout):
    """What verl's worker calls to load weights, sleep and wake; and `generate`, which our worker calls."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any):
        super().__init__(config, model_config, device_mesh)
        if self._serves_adapters():
            raise NotImplementedError("LoRA adapters in vLLM are not supported: set model.lora.merge=true")
        replica = torch.distributed.get_rank() // self.config.tensor_model_parallel_size
        arguments = EngineArgs(**engine_arguments(self.config, self.model_config.local_path, replica=replica))
        sampling = {name: self.config[name] for name in ("temperature", "top_p", "top_k")}
        apply("rollout")
        warm_up_for(self._sampling_params(sampling, max_tokens=self.config.response_length))
        self._engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self._core = self._engine.engine_core
        self._version = 0
        # By request: those that the engine works on.
        self._completions: dict[str, _Completion] = {}
        # Calls of `generate` whose prompts the engine does not have yet, in their order.
        self._arrived: deque[_Call] = deque()
        self._num_steps = 0
        self._stepping = asyncio.Lock()
        # Collecting garbage would look through all that has been imported and loaded, a million objects, every step.
        gc.collect()
        gc.freeze()

    def _serves_adapters(self) -> bool:
        lora = self.model_config.lora
        return max(self.model_config.lora_rank, lora.get("rank", 0)) > 0 and not lora.get("merge", False)

    async def generate(
        self,
        prompts: Sequence[tuple[str, list[int]]],
        sampling: Mapping[str, Any],
        *,
        seed: int,
        finished: Callable[[list[Group]], None],
    ) -> None:
        """Complete `prompts` and hand every group to `finished` as soon as it is whole.

        A call that comes while another one is generating joins it at the engine's next step. Calls must come in the
        same order on all ranks of a tensor-parallel group.

        Args:
            prompts: A uid and token ids each.
            sampling: `n`, the completions of each prompt, and vLLM's temperature, top_p and top_k.
            seed: If nothing else is being generated, the same seed and prompts give the same completions on the same
                machine, whatever was generated before.
            finished: Called with groups of this call only.
        """
        call = _Call(prompts, sampling, seed, finished)
        self._arrived.append(call)
        # One call steps the engine for all calls. The next call takes over if any of its groups are left.
        async with self._stepping:
            while call in self._arrived or call.num_unfinished:
                self._take_in_calls()
                if self._completions:
                    self._step()
                # Let this process receive calls.
                await asyncio.sleep(0)

    def _take_in_calls(self) -> None:
        """Submit the prompts of calls that have arrived, in their order."""
        is_idle = not self._completions
        if self.config.tensor_model_parallel_size == 1:
            num_ready = len(self._arrived)
        elif is_idle or self._num_steps % _STEPS_BETWEEN_AGREEMENTS == 0:
            # All ranks must step the engine with the same requests, and a call reaches some ranks later than others.
            ready = torch.tensor(len(self._arrived))
            torch.distributed.all_reduce(ready, op=torch.distributed.ReduceOp.MIN, group=get_tp_group().cpu_group)
            num_ready = int(ready)
        else:
            return
        for _ in range(num_ready):
            call = self._arrived.popleft()
            if call.prompts and not self._completions:
                self._begin_anew(call.seed)
            self._submit(call)

    def _begin_anew(self, seed: int) -> None:
        self._num_submitted = self._num_finished = 0
        # The prefix cache was computed with other weights, or with other prompts in the batch: a validation in between
        # would change the last bits.
        self._engine.reset_prefix_cache()
        # Requests get no seed, which would make them slow. vLLM then draws from torch's generator, and its newer runner
        # gives every request a seed drawn from numpy's.
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)

    def _submit(self, call: _Call) -> None:
        sampling = dict(call.sampling)
        group_size = sampling.pop("n")
        call.num_unfinished = len(call.prompts)
        for uid, prompt_ids in call.prompts:
            group = _PendingGroup(uid, call, num_unfinished=group_size)
            limit = self._engine.model_config.max_model_len - len(prompt_ids)
            params = self._sampling_params(sampling, max_tokens=min(self.config.response_length, limit))
            prompt = TokensPrompt(prompt_token_ids=prompt_ids)
            request = self._engine.input_processor.process_inputs(uid, prompt, params, supported_tasks=("generate",))
            for number in range(group_size):
                one = copy(request)
                one.request_id = f"{uid}/{number}"
                self._num_submitted += 1
                group.completions.append(_Completion(group))
                self._completions[one.request_id] = group.completions[-1]
                self._core.add_request(one)

    def _step(self) -> None:
        """Decode one token of each request, and hand over the groups that are whole."""
        whole: dict[_Call, list[_PendingGroup]] = defaultdict(list)
        # At most for every token of every completion, while the GPU waits: the rest is done in _group.
        outputs = self._core.get_output().outputs
        for output in outputs:
            completion = self._completions[output.request_id]
            completion.tokens += output.new_token_ids
            completion.log_probs.append(output.new_logprobs.logprobs)
            if output.finished:
                del self._completions[output.request_id]
                self._num_finished += 1
                group = completion.group
                group.num_unfinished -= 1
                if not group.num_unfinished:
                    whole[group.call].append(group)
        self._num_steps += 1
        # An engine that steps without a new token makes no progress.
        if outputs:
            TRAINER.moved("completion", self._num_finished, self._num_submitted)
        for call, groups in whole.items():
            call.num_unfinished -= len(groups)
            call.finished([self._group(group) for group in groups])

    def _sampling_params(self, sampling: Mapping[str, Any], *, max_tokens: int) -> SamplingParams:
        # logprobs=0: the sampled token's own.
        return SamplingParams(
            **sampling, max_tokens=max_tokens, ignore_eos=self.config.ignore_eos, logprobs=0, detokenize=False
        )

    def _group(self, pending: _PendingGroup) -> Group:
        return Group(
            uid=pending.uid,
            responses=[completion.tokens for completion in pending.completions],
            log_probs=[np.concatenate(completion.log_probs)[:, 0] for completion in pending.completions],
            version=self._version,
        )

    async def update_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], *, global_steps: int | None = None, **_: Any
    ) -> None:
        """Load the actor's parameters, under their Hugging Face names."""
        runner = self._engine.model_executor.driver_worker.model_runner
        with torch.inference_mode():
            runner.model.load_weights(_made_outside(weights))
            process_weights_after_loading(runner.model, self._engine.model_config, runner.device)
        self._version = global_steps or 0

    async def resume(self, tags: list[str]) -> None:
        """Take memory for "weights" or the "kv_cache" again."""
        self._engine.wake_up(tags)

    async def release(self) -> None:
        """Give all memory back; weights must be loaded anew."""
        self._engine.sleep(level=2)


def _made_outside(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """`weights`, made outside of inference mode: adapters are merged on the way, into parameters to be trained."""
    waiting = iter(weights)
    for num_loaded in itertools.count(1):
        with torch.inference_mode(False), torch.no_grad():
            made = next(waiting, None)
        if made is None:
            return
        yield made
        TRAINER.moved("weight", num_loaded)


def engine_arguments(config: Any, model_path: str, *, replica: int) -> dict[str, Any]:
    """vLLM's EngineArgs for verl's `rollout` configuration; `engine_kwargs.vllm` adds to them or overrules them.

    replica: the number of this engine, which sets its seed apart from the others'; ranks of one engine share it.
    """
    own = {name: value for name, value in (config.engine_kwargs.get("vllm") or {}).items() if value is not None}
    if isinstance(own.get("compilation_config"), str):
        own["compilation_config"] = json.loads(own["compilation_config"])
    if config.cudagraph_capture_sizes:
        own.setdefault("compilation_config", {})["cudagraph_capture_sizes"] = list(config.cudagraph_capture_sizes)
    if config.max_model_len is not None:
        own["max_model_len"] = config.max_model_len
    # With the first two settings, vLLM may plan one step at a time, which takes another scheduler of its own. On a CPU,
    # vLLM has no model runner that the fast path supports.
    chooses_itself = {"async_scheduling", "speculative_config", "scheduler_cls"} & own.keys()
    has_fast_path = not chooses_itself and get_device_name() != "cpu"
    return {
        "model": model_path,
        "tokenizer": model_path,
        "dtype": config.dtype,
        # verl's "dummy": the actor's weights come before the first prompt.
        "load_format": config.load_format,
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": config.tensor_model_parallel_size,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "enable_chunked_prefill": config.enable_chunked_prefill,
        "enable_prefix_caching": config.enable_prefix_caching,
        "enable_sleep_mode": config.enable_sleep_mode,
        "enforce_eager": config.enforce_eager,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "logprobs_mode": config.logprobs_mode,
        "disable_log_stats": True,
        "scheduler_cls": scheduler_for_rollouts(vllm.__version__) if has_fast_path else None,
        "seed": config.seed + replica,
        # Sampling is what the configuration says, whatever the model's generation_config.json suggests.
        "generation_config": "vllm",
        **own,
    }
