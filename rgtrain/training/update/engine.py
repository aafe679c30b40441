"""Engines that extend verl's FSDP2 engine, with one copy of each group's prompt if that is right for the model.

verl's forward pass repeats the prompt for every completion and also computes logits for the prompt. Without flash-attn,
it takes log-probabilities sample by sample. It has no engine for a CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine.fsdp.transformer_impl import (
    FSDPEngineWithLMHead,
    FSDPEngineWithValueHead,
    detach_tree,
    get_device_id,
    get_device_name,
)

from rgtrain.errors import ConfigError
from rgtrain.models.family_layouts import PADDED_ROWS
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.rollout.channel import TRAINER
from rgtrain.training.update.attention_kernels import expect_micro_batches, made_choices
from rgtrain.training.update.launch_ahead import deferred_items, loss_inputs, nested_values
from rgtrain.training.update.layouts import LAYOUTS, Layout, NoRightLayout, PolicyModel, remove_noise
from rgtrain.training.update.log_prob_head import Targets
from rgtrain.training.update.lora_linear import merged_in_gathered_weights
from rgtrain.training.update.mini_batches import select_micro_batches, weighted_by_tokens, without_spare_rows
from rgtrain.training.update.packed_attention import copy_to_device
from rgtrain.training.update.packing import ArrangedSequences
from rgtrain.training.update.padded_batches import COUNTS_PADDING, counting_padding
from rgtrain.training.update.weight_sync import ActorWeights

# The key of a batch by which the engine requests micro-batches for a layout, given by its name.
_LAYOUT = "layout"
_UNSUPPORTED = ("use_fused_kernels", "distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


class _ReportedMicroBatches(list[TensorDict]):
    """A list of micro-batches that reports each one when verl, having finished it, asks for the next one."""

    def __iter__(self) -> Iterator[TensorDict]:
        for num_finished, micro_batch in enumerate(super().__iter__(), start=1):
            yield micro_batch
            TRAINER.moved("micro-batch", num_finished, len(self))


def reported_micro_batches(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap verl's `prepare_micro_batches` so that micro-batches are reported and, if requested, fit a layout."""
    original = counting_padding(original)

    def prepare_micro_batches(data: TensorDict, **options: Any) -> tuple[list[TensorDict], Any]:
        # verl's micro-batches split groups, and the prompt of a group would then be computed in each of its parts.
        name = tu.get_non_tensor_data(data=data, key=_LAYOUT, default=None)
        layouts = [layout for layout in LAYOUTS if layout.name == name]
        prepare = partial(_micro_batches_of_layout, layout=layouts[0]) if layouts else original
        micro_batches, indices = prepare(data=data, **options)
        return _ReportedMicroBatches(micro_batches), indices

    return prepare_micro_batches


class CriticEngine(FSDPEngineWithValueHead):
    """verl's engine for critics, with a token budget that counts padding. Critics do not share prompts."""

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """Process a batch in micro-batches. With dynamic batch sizes, their padded tokens fit into the budget."""
        is_dynamic = tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)
        tu.assign_non_tensor(data, **{COUNTS_PADDING: is_dynamic})
        output = super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        return without_spare_rows(output, num_samples=len(data))

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """Process a micro-batch; return verl's loss and outputs, with metrics that add up to means over tokens."""
        loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        if not forward_only:
            output["metrics"] = weighted_by_tokens(output["metrics"], micro_batch)
        return loss, output


class SharedPromptEngine(FSDPEngineWithLMHead):
    """verl's language-model engine with one copy of each group's prompt if that is right for the model.

    A self-test chooses the layout of micro-batches at the start. The engine computes log-probabilities of completions
    only. For prompt tokens, which do not need them, it returns zeros.

    The first update after a weight sync reports `rollout_gap/mean` and `rollout_gap/max`, the absolute differences
    between its log-probabilities of the sampled tokens and vLLM's. Both then have the same weights, so the two
    implementations should agree.

    Attributes:
        layout: The layout of micro-batches.
    """

    _num_updates_since_sync = 0
    # The number of loaded checkpoints.
    _num_loads = 0

    def _build_module(self) -> Any:
        if self.use_ulysses_sp:
            raise NotImplementedError(
                "sequence parallelism (ulysses_sequence_parallel_size) does not work with shared prompts; set it to 1"
            )
        remove_noise(self.model_config.hf_config)
        module = super()._build_module()
        try:
            self._policy = PolicyModel(module)
        except NotImplementedError as error:
            raise _cannot_train(error) from error
        return module

    def _build_model_optimizer(self) -> None:
        super()._build_model_optimizer()
        self._units = [module for module in self.module.modules() if isinstance(module, FSDPModule)]
        self.layout = self._choose_layout()

    def _choose_layout(self) -> Layout:
        """Return the fastest layout that is right for the model, the same on all ranks."""
        config = self.engine_config
        expect_micro_batches(config.max_token_len_per_gpu or config.infer_max_token_len_per_gpu or 0)
        with self.eval_mode():
            try:
                choice = self._policy.choose_layout(
                    self._run_model,
                    device=get_device_id(),
                    dtype=self._autocast_dtype,
                    needs_padding=self._policy.family in PADDED_ROWS,
                    max_over_ranks=lambda number: _max_over_ranks(number, self.get_data_parallel_group()),
                )
            except NoRightLayout as error:
                raise _cannot_train(error) from error
        # Gathered parameters would hide those of a checkpoint that is loaded next.
        for unit in self._units:
            unit.reshard()
        if torch.distributed.get_rank() == 0 and not self.engine_config.forward_only:
            announce(str(choice))
            for line in () if choice.layout.is_padded else made_choices():
                announce(line)
        return choice.layout

    def _run_model(self, **inputs: Any) -> Any:
        """Run the model as `forward_step` does."""
        with self._autocast():
            return self.module(**inputs)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type=get_device_name(), dtype=self._autocast_dtype)

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """Process a batch in micro-batches. With dynamic batch sizes, the layout decides how it is split."""
        is_dynamic = tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)
        tu.assign_non_tensor(data, **{_LAYOUT: self.layout.name if is_dynamic else None})
        # An update keeps gathered parameters for all its micro-batches, so one merge serves them all.
        is_merged = self._is_lora and not forward_only and not self.engine_config.reshard_after_forward
        with merged_in_gathered_weights(self.module) if is_merged else nullcontext():
            output = super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        return without_spare_rows(output, num_samples=len(data))

    @contextmanager
    def _gradient_sync_context(self, *, is_last_micro_batch: bool) -> Iterator[None]:
        """Reduce gradients and reshard parameters after the last micro-batch only, if the configuration says so.

        Resharding and gathering would launch thousands of small kernels per micro-batch, which can take most of its
        time. verl finds the units by a search through all modules, three times per micro-batch. A model with adapters
        has thousands of modules.
        """
        reduces = is_last_micro_batch or not self.engine_config.use_no_sync_for_gradient_accumulation
        for unit in self._units:
            if not self.engine_config.reshard_after_forward:
                unit.set_reshard_after_backward(is_last_micro_batch, recurse=False)
            unit.set_requires_gradient_sync(reduces, recurse=False)
        yield

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """Process a micro-batch.

        Args:
            micro_batch: The samples, with nested tensors.
            loss_function: verl's loss function.
            forward_only: Whether to skip the loss, as for inference.

        Returns:
            The loss and the outputs of verl's method, with the rollout gap among the metrics of the outputs.

        Raises:
            NotImplementedError: The batch uses a feature that does not work with this engine.
        """
        for feature in _UNSUPPORTED:
            if tu.get_non_tensor_data(data=micro_batch, key=feature, default=False):
                raise NotImplementedError(f"{feature} is not supported with shared prompts; turn it off")
        on_host, micro_batch = micro_batch, loss_inputs(micro_batch, get_device_id())
        inputs, arguments = self.prepare_model_inputs(micro_batch)
        with self._autocast():
            output = self.module(**inputs, use_cache=False)
            # A loss function needs the values of responses only. Other callers expect whole sequences.
            arguments["of_responses"] = not (
                forward_only or tu.get_non_tensor_data(data=micro_batch, key="return_model_output", default=False)
            )
            results = self.prepare_model_outputs(output, arguments, micro_batch, loss_function)
            metrics: dict[str, Any] = {}
            loss = torch.ones(())
            if loss_function is not None:
                with deferred_items():
                    group = self.get_data_parallel_group()
                    loss, metrics = loss_function(model_output=results, data=micro_batch, dp_group=group)
                    if not forward_only:
                        metrics = weighted_by_tokens(metrics, on_host)
                    if not forward_only and self._num_updates_since_sync == 0 and "rollout_log_probs" in micro_batch:
                        metrics |= self._rollout_gap(micro_batch)
        # The graph of a micro-batch must not outlive its backward pass.
        return loss, {"model_output": detach_tree(results), "loss": loss.detach().clone(), "metrics": metrics}

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the model's arguments for the micro-batch, and the arguments of `prepare_model_outputs`."""
        arranged = self.layout.arrange(micro_batch["prompts"].unbind(), micro_batch["responses"].unbind())
        arranged = arranged.to(get_device_id())
        self._policy.head.targets = Targets(
            labels=arranged.labels,
            sources=arranged.sources,
            temperature=_temperature_of_tokens(micro_batch),
            with_entropy=tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False),
        )
        return arranged.model_inputs, {"arranged": arranged}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """Return the log-probabilities of the micro-batch, and the entropy if requested, as nested tensors."""
        log_probs, entropy = output.logits.unbind(-1)
        self._log_probs = log_probs.detach()
        as_nested = _as_responses if output_args["of_responses"] else partial(_as_sequences, output_args["arranged"])
        results = {"log_probs": as_nested(micro_batch, log_probs)}
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            results["entropy"] = as_nested(micro_batch, entropy)
        return results

    def _rollout_gap(self, micro_batch: TensorDict) -> dict[str, Metric]:
        gap = (self._log_probs - micro_batch["rollout_log_probs"].values().to(self._log_probs)).abs()
        gap = gap * micro_batch["loss_mask"].values().to(gap)
        num_tokens, num_ranks = (micro_batch[key] for key in ("batch_num_tokens", "dp_size"))
        return {
            # verl sums over micro-batches and averages over ranks. A mean of means would depend on how tokens are
            # divided.
            "rollout_gap/mean": Metric(value=gap.sum() * num_ranks / num_tokens, aggregation=AggregationType.SUM),
            "rollout_gap/max": Metric(value=gap.max(), aggregation=AggregationType.MAX),
        }

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Compute with the frozen weights alone, as for the reference policy."""
        trained = [param for group in self.optimizer.param_groups for param in group["params"] if param.requires_grad]
        with super().disable_adapter():
            yield
        # PEFT freezes the shards of adapters, and thaws only the gathered parameters if there are some by now.
        for param in trained:
            param.requires_grad_(True)

    def optimizer_step(self) -> float:
        """Update the parameters, and return the norm of the gradient."""
        self._num_updates_since_sync += 1
        return super().optimizer_step()

    def get_per_tensor_param(self, *args: Any, **kwargs: Any) -> Any:
        """Return the names and tensors of all parameters for vLLM, with adapters merged."""
        self._num_updates_since_sync = 0
        if hasattr(self.module, "peft_config") and not self.model_config.lora.get("merge", False):
            return super().get_per_tensor_param(*args, **kwargs)
        return ActorWeights(self.module, device=get_device_id(), frozen_version=self._num_loads), None

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Restore the parameters and the optimizer. Frozen parameters may change too."""
        super().load_checkpoint(*args, **kwargs)
        self._num_loads += 1


def _cannot_train(error: Exception) -> ConfigError:
    return ConfigError(f"{error}; use another model, or set engine=verl")


def _micro_batches_of_layout(
    data: TensorDict, dp_group: Any = None, same_micro_num_in_dp: bool = True, *, layout: Layout
) -> Any:
    """Return the micro-batches of a layout and the indices of their sequences, as verl's prepare_micro_batches does."""
    prompts, responses = (data[name].cpu().unbind() for name in ("prompts", "responses"))
    parts = layout.split(
        [prompt.numpy() for prompt in prompts],
        [response.numpy() for response in responses],
        max_tokens=data["max_token_len_per_gpu"],
        num_parts_agreed=lambda num_parts: int(_max_over_ranks(num_parts, dp_group)),
    )
    return select_micro_batches(data, parts)


def _max_over_ranks(number: float, dp_group: Any) -> float:
    """Return the largest `number` of all ranks. They gather parameters together, so all take the same steps."""
    largest = torch.tensor(number, device=get_device_id())
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=dp_group)
    return largest.item()


def _temperature_of_tokens(micro_batch: TensorDict) -> Any:
    """Return one temperature for all completion tokens, or a tensor with the temperature of each token."""
    temperature = micro_batch["temperature"]
    if not isinstance(temperature, torch.Tensor):
        return temperature
    lengths = micro_batch["responses"].offsets().diff()
    return copy_to_device(temperature.float().repeat_interleave(lengths), get_device_id())


def _as_responses(micro_batch: TensorDict, values: torch.Tensor) -> torch.Tensor:
    """Return values of completion tokens as nested responses."""
    offsets = micro_batch["responses"].offsets()
    return nested_values(values, copy_to_device(offsets, values.device), int(offsets.diff().max()))


def _as_sequences(arranged: ArrangedSequences, micro_batch: TensorDict, values: torch.Tensor) -> torch.Tensor:
    """Return values of completion tokens as nested sequences, each value at the position that predicts its token."""
    sequences = micro_batch["input_ids"]
    all_values = values.new_zeros(len(sequences.values())).index_put((arranged.places,), values)
    # Without the longest length, padding would make each row as long as all rows together.
    return nested_values(all_values, copy_to_device(sequences.offsets(), values.device), arranged.max_length)
