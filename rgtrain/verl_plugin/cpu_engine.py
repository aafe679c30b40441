"""verl's FSDP engine on the CPU, with one copy of each group's prompt; loaded through `model.external_lib`.

verl registers its FSDP engines for CUDA and NPU devices only, and its own forward pass repeats the prompt for every
completion and computes logits for the prompt too.
"""

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from rgtrain.verl_plugin.shared_prompt import PackedGroups, pack_groups

_UNSUPPORTED = ("use_fused_kernels", "distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


# The registry refuses a second engine for the same device: verl having one of its own cannot go unnoticed.
@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])
class CpuEngine(FSDPEngineWithLMHead):
    """Log-probabilities of completions only; those of prompt tokens come back as zeros, and nothing reads them."""

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        for feature in _UNSUPPORTED:
            if tu.get_non_tensor_data(data=micro_batch, key=feature, default=False):
                raise NotImplementedError(f"{feature} is not supported on the CPU")
        pad_token_id = tu.get_non_tensor_data(data=micro_batch, key="pad_token_id", default=0)
        packed = pack_groups(
            micro_batch["prompts"].unbind(), micro_batch["responses"].unbind(), pad_token_id=pad_token_id
        )
        inputs = {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
            "attention_mask": packed.attention_mask,
            "logits_to_keep": torch.arange(packed.first_column, packed.input_ids.shape[1]),
        }
        return inputs, {"packed": packed}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        packed: PackedGroups = output_args["packed"]
        logits = output.logits[packed.rows, packed.columns - packed.first_column].float()
        logits = logits / _temperature_of_tokens(micro_batch)
        log_probs = torch.log_softmax(logits, dim=-1)
        chosen = log_probs.gather(-1, packed.labels[:, None]).squeeze(-1)
        results = {"log_probs": _as_sequences(chosen, packed, micro_batch)}
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            results["entropy"] = _as_sequences(entropy, packed, micro_batch)
        return results


# Critics read one value a token and share nothing.
EngineRegistry.register(model_type="value_model", backend=["fsdp2"], device=["cpu"])(FSDPEngineWithValueHead)


def _temperature_of_tokens(micro_batch: TensorDict) -> Any:
    """One temperature for all completion tokens, or a column with each one's own."""
    temperature = micro_batch["temperature"]
    if not isinstance(temperature, torch.Tensor):
        return temperature
    lengths = micro_batch["responses"].offsets().diff()
    return temperature.float().repeat_interleave(lengths)[:, None]


def _as_sequences(values: torch.Tensor, packed: PackedGroups, micro_batch: TensorDict) -> torch.Tensor:
    """Values of completion tokens in verl's layout: whole sequences, each value where its logits were."""
    offsets = micro_batch["input_ids"].offsets()
    whole = values.new_zeros(int(offsets[-1])).index_put((packed.places,), values)
    return torch.nested.nested_tensor_from_jagged(whole, offsets)
