"""Run vLLM inside the training worker, with one process, one CUDA context and no copies of weights between processes.

verl runs vLLM behind a server in separate processes. Every request, token and weight then passes between processes,
which for small models takes several times as long as generating. Here, the worker steps vLLM's engine core itself.
Ranks of a tensor-parallel group step their engines together (vLLM's `external_launcher`).
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
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

from rgtrain.machine.garbage_collection import collect_as_usual
from rgtrain.models.context_length import vllm_overrides
from rgtrain.training.rollout.channel import TRAINER
from rgtrain.training.rollout.decoding_scheduler import scheduler_for_rollouts
from rgtrain.training.rollout.dispatch import EngineCapacity
from rgtrain.training.rollout.groups import Group, PartKey, PartRequest
from rgtrain.training.rollout.weight_loading import WeightLoader, WeightSource
from rgtrain.upstream.gpu_vllm import warm_up_for
from rgtrain.upstream.replacements import apply

# The ranks of a tensor-parallel group agree on new calls once in this many decoding steps.
_STEPS_BETWEEN_AGREEMENTS = 8


@dataclass(eq=False)
class _Call:
    """The arguments of one call of `generate`, and the number of its incomplete parts."""

    parts: Sequence[PartRequest]
    sampling: Mapping[str, Any]
    seed: int
    finished: Callable[[list[Group], list[PartKey]], None]
    num_unfinished: int = 0


@dataclass
class _PendingGroup:
    key: PartKey
    call: _Call
    completions: list["_Completion"] = field(default_factory=list)
    num_unfinished: int = 0


@dataclass
class _Completion:
    group: _PendingGroup
    tokens: list[int] = field(default_factory=list)
    # One array per output of the engine, with the log-probabilities of its tokens in the first column.
    log_probs: list[np.ndarray] = field(default_factory=list)


class VllmRollout(BaseRollout):
    """A vLLM engine with the interface of verl's rollouts, plus `generate` for our worker.

    Args:
        config: verl's `rollout` configuration.
        model_config: verl's model configuration.
        device_mesh: The mesh of ranks that verl passes.
    """

    # The number of calls of `generate` that were submitted, and so the number of the next one.
    _num_calls = 0

    def __init__(self, config: Any, model_config: Any, device_mesh: Any):
        super().__init__(config, model_config, device_mesh)
        if self._serves_adapters():
            raise NotImplementedError("LoRA adapters in vLLM are not supported; set model.lora.merge=true")
        replica = torch.distributed.get_rank() // self.config.tensor_model_parallel_size
        path, trust = self.model_config.local_path, self.model_config.trust_remote_code
        arguments = EngineArgs(**engine_arguments(self.config, path, replica=replica, trust_remote_code=trust))
        sampling = {name: self.config[name] for name in ("temperature", "top_p", "top_k")}
        apply("rollout")
        apply("fast_rollout")
        warm_up_for(self._sampling_params(sampling, max_tokens=self.config.response_length))
        self._engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self._core = self._engine.engine_core
        model = self._engine.model_executor.driver_worker.model_runner.model
        self._weights = WeightLoader(model, self._process_weights)
        self._version = 0
        # The unfinished completions by request id.
        self._completions: dict[str, _Completion] = {}
        # Calls of `generate` whose prompts have not been submitted to the engine, by number.
        self._waiting_calls: dict[int, _Call] = {}
        self._num_steps = 0
        self._stepping = asyncio.Lock()
        collect_as_usual()

    def _serves_adapters(self) -> bool:
        lora = self.model_config.lora
        return max(self.model_config.lora_rank, lora.get("rank", 0)) > 0 and not lora.get("merge", False)

    async def generate(
        self,
        parts: Sequence[PartRequest],
        sampling: Mapping[str, Any],
        *,
        number: int,
        seed: int,
        finished: Callable[[list[Group], list[PartKey]], None],
    ) -> None:
        """Generate completions and pass each group to `finished` as soon as it is complete.

        If another call is already generating, this call joins it at one of the engine's next steps. Ray may deliver
        calls in another order than they were sent, so the engine takes them in the order of their numbers.

        Args:
            parts: The requested groups, or parts of them.
            sampling: vLLM's temperature, top_p and top_k.
            number: The number of earlier calls to this engine since its start. A call waits until all of them have
                arrived. Ranks of a tensor-parallel group get the same calls with the same numbers.
            seed: If the engine is idle, the same seed and requests give the same completions on the same machine.
                Earlier calls have no influence.
            finished: Called with the complete groups of this call, and with a part's name for each other completion
                that is finished.
        """
        call = _Call(parts, sampling, seed, finished)
        self._waiting_calls[number] = call
        # One call steps the engine for all calls. When it is done, the next unfinished call takes over.
        async with self._stepping:
            while number in self._waiting_calls or call.num_unfinished:
                self._admit_calls()
                if self._completions:
                    self._step()
                # Lets this process receive new calls.
                await asyncio.sleep(0)

    def _admit_calls(self) -> None:
        """Submit the prompts of waiting calls in the order of their numbers, up to the first one that is missing."""
        num_ready = 0
        while self._num_calls + num_ready in self._waiting_calls:
            num_ready += 1
        if self.config.tensor_model_parallel_size > 1:
            is_idle = not self._completions
            if not is_idle and self._num_steps % _STEPS_BETWEEN_AGREEMENTS:
                return
            # All ranks must step the engine with the same requests, but a call reaches some ranks later than others.
            ready = torch.tensor(num_ready)
            torch.distributed.all_reduce(ready, op=torch.distributed.ReduceOp.MIN, group=get_tp_group().cpu_group)
            num_ready = int(ready)
        for _ in range(num_ready):
            call = self._waiting_calls.pop(self._num_calls)
            self._num_calls += 1
            if call.parts and not self._completions:
                self._reset(call.seed)
            self._submit(call)

    def _reset(self, seed: int) -> None:
        self._num_submitted = self._num_finished = 0
        # The cache was computed with other weights or in other batches. If it were kept, a validation in between would
        # change the last bits of the results.
        self._engine.reset_prefix_cache()
        # A seed per request would be slow. Without one, vLLM's older runner draws from torch's generator, and the newer
        # one seeds each request from numpy's.
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)

    def _submit(self, call: _Call) -> None:
        call.num_unfinished = len(call.parts)
        for key, num_completions, prompt_ids in call.parts:
            group = _PendingGroup(key, call, num_unfinished=num_completions)
            limit = self._engine.model_config.max_model_len - len(prompt_ids)
            params = self._sampling_params(call.sampling, max_tokens=min(self.config.response_length, limit))
            prompt = TokensPrompt(prompt_token_ids=prompt_ids)
            process = self._engine.input_processor.process_inputs
            request = process(key.uid, prompt, params, supported_tasks=("generate",))
            for number in range(num_completions):
                copied = copy(request)
                # When all completions are finished, vLLM may still have a step in flight. If a later request had the
                # same name, as a validation's after a training step, it would take that step's tokens as its own.
                copied.request_id = f"{key.uid}/{key.first + number}/{self._num_calls}"
                self._num_submitted += 1
                group.completions.append(_Completion(group))
                self._completions[copied.request_id] = group.completions[-1]
                self._core.add_request(copied)

    def _step(self) -> None:
        """Decode one token of each request, and pass on the groups that are complete."""
        finished: dict[_Call, tuple[list[_PendingGroup], list[PartKey]]] = defaultdict(lambda: ([], []))
        # The GPU waits during this loop, which may run for every token. All other work is left to `_group`.
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
                groups, completions = finished[group.call]
                if group.num_unfinished:
                    completions.append(group.key)
                else:
                    groups.append(group)
        self._num_steps += 1
        # A step without a new token is not progress.
        if outputs:
            TRAINER.moved("completion", self._num_finished, self._num_submitted)
        for call, (groups, completions) in finished.items():
            call.num_unfinished -= len(groups)
            call.finished([self._group(group) for group in groups], completions)

    @property
    def capacity(self) -> EngineCapacity:
        """The number of sequences that the engine decodes together, and of tokens that its KV cache holds."""
        config = self._engine.vllm_config
        cache = config.cache_config
        # Only newer versions of vLLM have this attribute, which also counts the layers with their own cache.
        num_tokens = getattr(cache, "kv_cache_size_tokens", None)
        if num_tokens is None and cache.num_gpu_blocks is not None:
            num_tokens = cache.num_gpu_blocks * cache.block_size
        return EngineCapacity(config.scheduler_config.max_num_seqs, num_tokens)

    def _sampling_params(self, sampling: Mapping[str, Any], *, max_tokens: int) -> SamplingParams:
        # logprobs=0 returns the log-probability of the sampled token only.
        return SamplingParams(
            **sampling, max_tokens=max_tokens, ignore_eos=self.config.ignore_eos, logprobs=0, detokenize=False
        )

    def _group(self, pending: _PendingGroup) -> Group:
        return Group(
            uid=pending.key.uid,
            first=pending.key.first,
            responses=[completion.tokens for completion in pending.completions],
            log_probs=[np.concatenate(completion.log_probs)[:, 0] for completion in pending.completions],
            version=self._version,
        )

    async def update_weights(self, weights: WeightSource, *, global_steps: int | None = None, **_: Any) -> None:
        """Load the actor's parameters.

        Args:
            weights: The Hugging Face names and the tensors of the parameters.
            global_steps: The training step of the weights, which groups carry as their version.
        """
        self._weights.load(weights)
        self._version = global_steps or 0

    def _process_weights(self) -> None:
        """Prepare loaded weights for vLLM's kernels."""
        runner = self._engine.model_executor.driver_worker.model_runner
        process_weights_after_loading(runner.model, self._engine.model_config, runner.device)
        if get_device_name() == "cpu":
            _pack_experts(runner.model)

    async def resume(self, tags: list[str]) -> None:
        """Allocate the memory of `tags` again, which are "weights" and "kv_cache"."""
        self._engine.wake_up(tags)

    async def release(self) -> None:
        """Free all memory of the engine. The weights must be loaded again afterwards."""
        self._engine.sleep(level=2)
        self._weights.forget()


def _pack_experts(model: Any) -> None:
    """Pack the new weights of experts for vLLM's CPU kernels. vLLM itself packs only the first weights."""
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(module)


def engine_arguments(config: Any, model_path: str, *, replica: int, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return the arguments of vLLM's engine.

    Args:
        config: verl's `rollout` configuration. Its `engine_kwargs.vllm` adds arguments. Preflight refuses those
            that are set here.
        model_path: The folder of the model.
        replica: The number of the engine, which is added to the seed. Ranks of one engine share it.
        trust_remote_code: Whether the model may run code from its folder.

    Returns:
        Keyword arguments for vLLM's EngineArgs.
    """
    overrides = {name: value for name, value in (config.engine_kwargs.get("vllm") or {}).items() if value is not None}
    if isinstance(overrides.get("compilation_config"), str):
        overrides["compilation_config"] = json.loads(overrides["compilation_config"])
    if config.cudagraph_capture_sizes:
        overrides.setdefault("compilation_config", {})["cudagraph_capture_sizes"] = list(config.cudagraph_capture_sizes)
    # vLLM refuses a KV cache that is too small for one sequence of this length, and the context may be far longer.
    overrides.setdefault("max_model_len", config.prompt_length + config.response_length)
    if config.max_model_len is not None:
        overrides["max_model_len"] = config.max_model_len
    if extended := vllm_overrides(Path(model_path), max_model_len=overrides["max_model_len"]):
        overrides.setdefault("hf_overrides", extended)
    # With the first two settings, vLLM may need a scheduler that plans one step at a time. On a CPU, vLLM has no model
    # runner that the fast path supports.
    chooses_scheduler = {"async_scheduling", "speculative_config", "scheduler_cls"} & overrides.keys()
    has_fast_path = not chooses_scheduler and get_device_name() != "cpu"
    return {
        "model": model_path,
        "tokenizer": model_path,
        "trust_remote_code": trust_remote_code,
        "dtype": config.dtype,
        # verl sets "dummy", because the actor's weights are loaded before the first prompt.
        "load_format": config.load_format,
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": config.tensor_model_parallel_size,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "enable_chunked_prefill": config.enable_chunked_prefill,
        "enable_prefix_caching": config.enable_prefix_caching,
        "enable_sleep_mode": config.enable_sleep_mode,
        "enforce_eager": config.enforce_eager,
        # vLLM's own all-reduce reads the memory of the other GPUs, but each worker sees only its own GPU.
        "disable_custom_all_reduce": True,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "logprobs_mode": config.logprobs_mode,
        "disable_log_stats": True,
        "scheduler_cls": scheduler_for_rollouts(vllm.__version__) if has_fast_path else None,
        "seed": config.seed + replica,
        # Ignores the sampling in the model's generation_config.json.
        "generation_config": "vllm",
        **overrides,
    }
