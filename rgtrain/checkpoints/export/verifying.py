"""Verify that an exported model equals its checkpoint, by the tensors on disk and by the logits."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from rgtrain.checkpoints.export.safetensors_format import written_dtype
from rgtrain.checkpoints.hugging_face import TOKENIZER_CONFIG
from rgtrain.checkpoints.shards.layout import VALUE_HEAD, ModelLayout
from rgtrain.checkpoints.shards.loading import ShardedModel
from rgtrain.checkpoints.shards.lora import Adapter
from rgtrain.checkpoints.shards.safetensors_reader import read_safetensors
from rgtrain.checkpoints.shards.tensors import TensorSource, read_all, read_blocks, same_bits, single_torch_thread
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.checkpoints.untrusted_files import first_line
from rgtrain.errors import ConfigError

PROMPT = "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Think step by step."


@dataclass(frozen=True)
class LogitDifference:
    """The difference between the logits of two models on PROMPT.

    Attributes:
        largest: The largest absolute difference.
        magnitude: The largest absolute logit.
        num_same_top: The number of positions at which both models rank the same token first.
        num_positions: The number of positions.
    """

    largest: float
    magnitude: float
    num_same_top: int
    num_positions: int

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.largest:.3g}, with magnitudes up to {self.magnitude:.3g}; same top token "
            f"at {self.num_same_top} of {self.num_positions} positions"
        )


def check_written(
    folder: Path, tensors: Mapping[str, TensorSource], *, dtype: torch.dtype | None, progress: ExportProgress
) -> None:
    """Read the exported tensors back. Raise ConfigError unless they equal `tensors`, as `dtype`, bit for bit."""
    written = read_safetensors(folder)
    if odd := sorted(written.keys() ^ tensors.keys()):
        raise ConfigError(f"tensor {odd[0]!r} is only in the checkpoint or only in the exported files: export again")
    with single_torch_thread():
        for name, source in tensors.items():
            progress.moved(f"the written tensor {name!r}")
            if not _is_written_as_given(source, written[name], written_dtype(source, dtype)):
                raise ConfigError(
                    f"tensor {name!r} has other values on disk than were written: check the disk, and export again"
                )


def _is_written_as_given(source: TensorSource, stored: TensorSource, dtype: torch.dtype) -> bool:
    start = 0
    for block in read_blocks(source):
        num_rows = block.shape[0] if block.dim() else 1
        if not same_bits(block.to(dtype), stored.rows(start, start + num_rows)):
            return False
        start += num_rows
    return True


def compare_logits(
    folder: Path, model: ShardedModel, tensors: Mapping[str, TensorSource], *, trust: bool = False
) -> LogitDifference:
    """Compare the logits of the exported model with those of the model merged from the shards.

    The models run one after the other, both in the checkpoint's precision, so that differences come from the weights.
    The limit is the largest logit times the square root of the written dtype's machine epsilon.

    Args:
        folder: The exported model.
        model: The checkpoint's model.
        tensors: The checkpoint's tensors with the adapter merged.
        trust: Whether the model's own code may run.

    Returns:
        The difference.

    Raises:
        ConfigError: The logits differ by more than the limit.
    """
    layout = model.layout
    precision = max(tensors.values(), key=lambda tensor: math.prod(tensor.shape)).dtype
    ids = _prompt_ids(folder, layout, trust=trust)
    expected = _logits(_model_from_shards(model, precision), ids)
    exported, stored = _load_exported(folder, model, precision, trust=trust)
    got = _logits(exported, ids)
    difference = LogitDifference(
        largest=float((got - expected).abs().max()),
        magnitude=float(expected.abs().max()),
        num_same_top=int((got.argmax(-1) == expected.argmax(-1)).sum()),
        num_positions=got.shape[-2],
    )
    limit = math.sqrt(torch.finfo(stored).eps) * difference.magnitude
    if not difference.largest <= limit:
        raise ConfigError(f"the exported model does not match the checkpoint ({difference})")
    return difference


def _model_from_shards(model: ShardedModel, precision: torch.dtype) -> nn.Module:
    base = _build_model(model.layout, {name: read_all(tensor) for name, tensor in model.tensors.items()}, precision)
    return base if model.adapter is None else _add_adapter(base, model.adapter, model.layout)


def _build_model(layout: ModelLayout, state: dict[str, Tensor], precision: torch.dtype) -> nn.Module:
    config = copy.deepcopy(layout.config)
    if any(alias in state and not torch.equal(state[alias], state[name]) for alias, name in layout.aliases.items()):
        config.tie_word_embeddings = False
    head = [state.pop(name) for name in VALUE_HEAD if name in state]
    model = layout.model_class.from_pretrained(None, config=config, state_dict=state, dtype=precision)
    return model if not head else _WithValueHead(model, *head)


def _add_adapter(base: nn.Module, adapter: Adapter, layout: ModelLayout) -> nn.Module:
    """Add the adapter to the base model without merging, as in training."""
    import peft

    config = peft.LoraConfig(**adapter.peft_config(layout.shapes))
    model = peft.get_peft_model(base, config)
    factors = {name: read_all(tensor) for name, tensor in adapter.named_tensors().items()}
    if unknown := peft.set_peft_model_state_dict(model, factors).unexpected_keys:
        raise ConfigError(f"PEFT can't load the adapter's tensor {unknown[0]!r} into the model")
    return model


def _load_exported(
    folder: Path, model: ShardedModel, precision: torch.dtype, *, trust: bool
) -> tuple[nn.Module, torch.dtype]:
    """Load the model in `folder` as a user would, and return it with the dtype of its weights on disk."""
    layout, stored = model.layout, read_safetensors(folder)
    dtype = max(stored.values(), key=lambda tensor: math.prod(tensor.shape)).dtype
    if (folder / "adapter_config.json").is_file():
        import peft

        base = _build_model(layout, {name: read_all(tensor) for name, tensor in model.tensors.items()}, precision)
        return peft.PeftModel.from_pretrained(base, folder), dtype
    loaded = layout.auto_class.from_pretrained(folder, dtype=precision, trust_remote_code=trust)
    head = [read_all(stored[name]).to(precision) for name in VALUE_HEAD if name in stored]
    return (loaded if not head else _WithValueHead(loaded, *head)), dtype


class _WithValueHead(nn.Module):
    """A model with trl's value head: returns a value per token, linear in the last hidden state, instead of logits."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor):
        super().__init__()
        self.model, self.weight, self.bias = model, weight, bias

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1]
        return nn.functional.linear(hidden, self.weight, self.bias)


@torch.inference_mode()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    output = model.eval()(ids)
    logits = output if isinstance(output, Tensor) else output.logits
    return logits.float()


def _prompt_ids(folder: Path, layout: ModelLayout, *, trust: bool) -> Tensor:
    vocab_size = layout.config.get_text_config().vocab_size
    if not (folder / TOKENIZER_CONFIG).is_file():
        return torch.arange(32)[None] % vocab_size
    try:
        ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)(PROMPT)["input_ids"]
    except Exception as error:  # tokenizers raises plain Exceptions.
        raise ConfigError(
            f"the exported tokenizer can't be loaded ({first_line(error)}): give HF_CONFIG_DIR with a working one"
        ) from error
    return torch.tensor([ids]) % vocab_size
