"""verl's FSDP2 engine with one copy of each group's prompt.

verl's own forward pass repeats the prompt for every completion and computes logits for the prompt too; it has no engine
for a CPU, and without flash-attn it takes log-probabilities sample by sample.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.utils.model import convert_weight_keys
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead, get_device_id

from rgtrain.machine.devices import has_flash_attention
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.rollout.channel import TRAINER
from rgtrain.training.update import packed_attention
from rgtrain.training.update.log_prob_head import LogProbHead, Targets
from rgtrain.training.update.micro_batches import split_into_micro_batches
from rgtrain.training.update.packing import MAX_GROUP_TOKENS, PackedGroups, pack_groups

# The key by which the engine asks for micro-batches of whole groups.
_KEEP_GROUPS = "keep_groups_whole"
_UNSUPPORTED = ("use_fused_kernels", "distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


class _ReportedMicroBatches(list[TensorDict]):
    """A list of micro-batches. While verl iterates over it, each one is reported after its backward pass."""

    def __iter__(self) -> Iterator[TensorDict]:
        for num_finished, micro_batch in enumerate(super().__iter__(), start=1):
            yield micro_batch
            TRAINER.moved("micro-batch", num_finished, len(self))


def reported_micro_batches(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return verl's `prepare_micro_batches`, which reports each micro-batch and keeps groups whole if asked to."""

    def prepare_micro_batches(data: TensorDict, **options: Any) -> tuple[list[TensorDict], Any]:
        # verl's own micro-batches scatter a group over several, and its prompt is then computed in each.
        keeps_groups = tu.get_non_tensor_data(data=data, key=_KEEP_GROUPS, default=False)
        micro_batches, indices = (_group_micro_batches if keeps_groups else original)(data=data, **options)
        return _ReportedMicroBatches(micro_batches), indices

    return prepare_micro_batches


class CriticEngine(FSDPEngineWithValueHead):
    """verl's engine for critics: they read one value a token and share nothing."""


class SharedPromptEngine(FSDPEngineWithLMHead):
    """Log-probabilities of completions only; those of prompt tokens come back as zeros, and nothing reads them.

    Reports `rollout_gap/...`: how far the log-probabilities of sampled tokens lie from vLLM's, while both hold the
    same weights (the first update after a weight sync): two implementations of one policy should agree.
    """

    _num_updates_since_sync = 0

    def _build_module(self) -> Any:
        if self.use_ulysses_sp:
            raise NotImplementedError("sequence parallelism (ulysses_sequence_parallel_size) needs verl's own engine")
        module = super()._build_module()
        module.set_attn_implementation(packed_attention.NAME)
        self._head = LogProbHead(module)
        if torch.cuda.is_available() and torch.distributed.get_rank() == 0:
            announce(
                f"attention in training: {'flash-attn' if has_flash_attention() else 'torch (no flash-attn here)'}"
            )
        return module

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        is_dynamic = tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)
        tu.assign_non_tensor(data, **{_KEEP_GROUPS: is_dynamic})
        return super().forward_backward_batch(data, loss_function, forward_only=forward_only)

    @contextmanager
    def _gradient_sync_context(self, *, is_last_micro_batch: bool) -> Iterator[None]:
        """verl's; and where parameters stay whole after the forward pass, they do so from micro-batch to micro-batch.

        Taking them apart and together again is thousands of small kernels a micro-batch, and was most of its time.
        """
        if not self.engine_config.reshard_after_forward:
            self.module.set_reshard_after_backward(is_last_micro_batch)
        with super()._gradient_sync_context(is_last_micro_batch=is_last_micro_batch):
            yield

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        for feature in _UNSUPPORTED:
            if tu.get_non_tensor_data(data=micro_batch, key=feature, default=False):
                raise NotImplementedError(f"{feature} is not supported with shared prompts")
        # Packed before verl moves the batch: reading lengths on a GPU would wait for it each time.
        self._packed = pack_groups(
            micro_batch["prompts"].cpu().unbind(),
            micro_batch["responses"].cpu().unbind(),
            max_group_tokens=None if torch.cuda.is_available() else MAX_GROUP_TOKENS,
        )
        loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        if not forward_only and self._num_updates_since_sync == 0 and "rollout_log_probs" in micro_batch:
            output["metrics"] |= self._rollout_gap(micro_batch)
        return loss, output

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        packed = self._packed.to(micro_batch["input_ids"].device)
        self._head.targets = Targets(
            labels=packed.labels,
            temperature=_temperature_of_tokens(micro_batch),
            with_entropy=tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False),
        )
        inputs = {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
            "layout": packed.layout,
            "logits_to_keep": packed.sources,
        }
        return inputs, {"packed": packed}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        packed: PackedGroups = output_args["packed"]
        log_probs, entropy = output.logits[0].unbind(-1)
        self._log_probs = log_probs.detach()
        results = {"log_probs": _as_sequences(log_probs, packed, micro_batch)}
        if self._head.targets.with_entropy:
            results["entropy"] = _as_sequences(entropy, packed, micro_batch)
        return results

    def _rollout_gap(self, micro_batch: TensorDict) -> dict[str, Metric]:
        gap = (self._log_probs - micro_batch["rollout_log_probs"].values().to(self._log_probs)).abs()
        num_tokens, num_ranks = (micro_batch[key] for key in ("batch_num_tokens", "dp_size"))
        return {
            # verl adds up micro-batches and averages ranks. The mean of means would depend on how tokens are divided.
            "rollout_gap/mean": Metric(value=gap.sum() * num_ranks / num_tokens, aggregation=AggregationType.SUM),
            "rollout_gap/max": Metric(value=gap.max(), aggregation=AggregationType.MAX),
        }

    def optimizer_step(self) -> float:
        self._num_updates_since_sync += 1
        return super().optimizer_step()

    def get_per_tensor_param(self, *args: Any, **kwargs: Any) -> Any:
        self._num_updates_since_sync = 0
        if self._holds_whole_parameters():
            params = convert_weight_keys(self.module.state_dict(), self.module)
            return ((name, p.to_local() if isinstance(p, DTensor) else p) for name, p in params.items()), None
        return super().get_per_tensor_param(*args, **kwargs)

    def _holds_whole_parameters(self) -> bool:
        """Whether this rank's own parameters are what vLLM takes: gathering them one by one takes longer."""
        if hasattr(self.module, "peft_config") or self._is_offload_param:
            return False
        return all(isinstance(param, DTensor) and param.device_mesh.size() == 1 for param in self.module.parameters())


def _group_micro_batches(data: TensorDict, dp_group: Any = None, same_micro_num_in_dp: bool = True) -> Any:
    """What verl's prepare_micro_batches returns: the micro-batches, and the indices of each one's sequences."""
    prompts, responses = (data[name].cpu().unbind() for name in ("prompts", "responses"))
    parts = split_into_micro_batches(
        [prompt.numpy() for prompt in prompts],
        [response.numpy() for response in responses],
        max_tokens=data["max_token_len_per_gpu"],
        num_parts_agreed=lambda num_parts: _largest(num_parts, dp_group),
    )
    if len(parts) == 1:
        return [data], [list(range(len(data)))]
    return [tu.index_select_tensor_dict(data, part) for part in parts], parts


def _largest(number: int, dp_group: Any) -> int:
    """The largest `number` among the ranks: they gather parameters together, so all run as many micro-batches."""
    largest = torch.tensor(number, device=get_device_id())
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=dp_group)
    return int(largest)


def _temperature_of_tokens(micro_batch: TensorDict) -> Any:
    """One temperature for all completion tokens, or each one's own."""
    temperature = micro_batch["temperature"]
    if not isinstance(temperature, torch.Tensor):
        return temperature
    lengths = micro_batch["responses"].offsets().diff()
    return temperature.float().repeat_interleave(lengths)


def _as_sequences(values: torch.Tensor, packed: PackedGroups, micro_batch: TensorDict) -> torch.Tensor:
    """Values of completion tokens in verl's layout: whole sequences, each value where its prediction was."""
    sequences = micro_batch["input_ids"]
    whole = values.new_zeros(len(sequences.values())).index_put((packed.places,), values)
    # With the longest length: without it, padding would make each row as long as all of them together.
    return torch.nested.nested_tensor_from_jagged(whole, sequences.offsets(), max_seqlen=packed.max_length)
