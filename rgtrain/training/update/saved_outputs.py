"""Save the outputs of the model in training with each checkpoint."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu

from rgtrain.checkpoints.trained_outputs import LOG_PROBS, VALUES, TrainedOutputs, count_scales, probe_sequences

# Larger than the sequences together, so that there is one micro-batch.
_MAX_TOKENS = 1024

logger = logging.getLogger(__name__)


def saving_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `save_checkpoint` of verl's FSDP engine so that rank 0 also saves the model's outputs.

    Args:
        original: verl's method.

    Returns:
        The method to use. All ranks compute the outputs, because they gather the parameters together.
    """

    def save_checkpoint(self: Any, local_path: Any, *arguments: Any, **options: Any) -> None:
        original(self, local_path, *arguments, **options)
        if local_path is None or not self.checkpoint_manager.should_save_model:
            return
        try:
            outputs = outputs_in_training(self)
            if torch.distributed.get_rank() == 0:
                outputs.write(Path(local_path))
        # A model's code can fail in any way. The checkpoint is complete without its outputs, and all ranks fail alike.
        except Exception as error:
            logger.warning("the checkpoint has no outputs to verify its export (%s)", error)

    return save_checkpoint


def outputs_in_training(engine: Any) -> TrainedOutputs:
    """Compute the outputs of an engine's model, as for the log-probabilities of the old policy. Collective.

    Args:
        engine: verl's FSDP engine or a subclass.

    Returns:
        The outputs, the same on all ranks.
    """
    config = engine.model_config.hf_config
    sequences = probe_sequences(config.to_dict(), vocab_size=config.get_text_config().vocab_size)
    data = _as_batch(sequences)
    tu.assign_non_tensor(
        data,
        temperature=1.0,
        calculate_entropy=False,
        use_dynamic_bsz=True,
        max_token_len_per_gpu=_MAX_TOKENS,
        use_remove_padding=engine.model_config.use_remove_padding,
        use_fused_kernels=engine.engine_config.use_fused_kernels,
    )
    with engine.eval_mode():
        found = engine.infer_batch(data)["model_output"]
    # Gathered parameters would hide those of the sharded model.
    for module in engine.module.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    quantity = VALUES if VALUES in found else LOG_PROBS
    # The output before each token but the first.
    outputs = [sequence[:-1].float().tolist() for sequence in found[quantity].unbind()]
    dtype = str(engine._autocast_dtype).removeprefix("torch.")
    return TrainedOutputs(quantity, dtype, sequences, outputs, count_scales(_adapter_scales(engine.module)))


def _as_batch(sequences: list[list[int]]) -> TensorDict:
    def nested(rows: list[list[int]]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    mask = nested([[1] * (len(sequence) - 1) for sequence in sequences])
    fields = {
        "prompts": nested([sequence[:1] for sequence in sequences]),
        "responses": nested([sequence[1:] for sequence in sequences]),
        "input_ids": nested(sequences),
        "position_ids": nested([list(range(len(sequence))) for sequence in sequences]),
        "response_mask": mask,
        "loss_mask": mask,
    }
    return tu.get_tensordict(fields)


def _adapter_scales(model: torch.nn.Module) -> list[float]:
    found = (getattr(module, "scaling", None) for module in model.modules() if hasattr(module, "lora_A"))
    return [float(scale) for scales in found if isinstance(scales, dict) for scale in scales.values()]
