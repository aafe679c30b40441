"""Verify that an exported model equals the model in training, by the tensors on disk and by its outputs."""

import copy
import math
from collections.abc import Mapping, Sequence
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
from rgtrain.checkpoints.trained_outputs import (
    LOG_PROBS,
    TRAINED_OUTPUTS,
    VALUES,
    TrainedOutputs,
    count_scales,
    probe_sequences,
    read_trained_outputs,
)
from rgtrain.checkpoints.untrusted_files import first_line
from rgtrain.errors import ConfigError

_NAMES = {LOG_PROBS: "log-probabilities", VALUES: "values"}
# Two computations of the same model differ by rounding. The limits are these differences, plus this many times those
# between the exported model's own outputs in two precisions.
_MEAN_DIFFERENCE, _LARGEST_DIFFERENCE = 5e-4, 3e-3
_MEAN_FACTOR, _LARGEST_FACTOR = 3, 4
# If the limit of the mean exceeds this, most wrong models would pass.
_MOST_MEAN_LIMIT = 0.5
_WEAKER = "weaker check passed (same as the checkpoint's shards; not compared with the model in training, because "


@dataclass(frozen=True)
class OutputDifference:
    """The absolute differences between the outputs of two models, and their limits.

    Attributes:
        quantity: The name of the outputs.
        num_outputs: The number of outputs.
        mean: The mean difference.
        largest: The largest difference.
        mean_limit: The largest mean difference that rounding explains.
        largest_limit: The largest difference that rounding explains.
    """

    quantity: str
    num_outputs: int
    mean: float
    largest: float
    mean_limit: float
    largest_limit: float

    @property
    def is_within_limits(self) -> bool:
        """Whether rounding explains the differences. False if one is not a number."""
        return self.mean <= self.mean_limit and self.largest <= self.largest_limit

    def __str__(self) -> str:
        return (
            f"{self.largest:.2g} (limit {self.largest_limit:.2g}), on average {self.mean:.2g} "
            f"(limit {self.mean_limit:.2g})"
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


def compare_outputs(
    folder: Path, checkpoint_folder: Path, model: ShardedModel, tensors: Mapping[str, TensorSource], *, trust: bool
) -> str:
    """Compare the outputs of the exported model with those that the model in training had when it was saved.

    Without saved outputs, it is compared with the model rebuilt from the shards. This can't find a wrong setting of the
    checkpoint, such as the scale of its adapter.

    Args:
        folder: The exported model.
        checkpoint_folder: The folder of the rank files.
        model: The checkpoint's model.
        tensors: The checkpoint's tensors with the adapter merged.
        trust: Whether the model's own code may run.

    Returns:
        A sentence with the compared outputs, the differences and their limits.

    Raises:
        ConfigError: The outputs differ by more than rounding explains, or rounding could hide any difference.
    """
    _check_tokenizer(folder, trust=trust)
    vocab_size = model.layout.config.get_text_config().vocab_size
    precision = max(tensors.values(), key=lambda tensor: math.prod(tensor.shape)).dtype
    trained = read_trained_outputs(checkpoint_folder)
    if trained is not None:
        _check_fits(trained, model, vocab_size=vocab_size)
        sequences, compute = trained.sequences, getattr(torch, trained.dtype)
        expected = Tensor([value for outputs in trained.outputs for value in outputs]).double()
    else:
        sequences, compute = probe_sequences(model.layout.config.to_dict(), vocab_size=vocab_size), precision
        expected = _outputs(_model_from_shards(model, precision), sequences, is_critic=model.layout.is_critic)
    exported, stored = _load_exported(folder, model, trust=trust)
    difference = _difference(exported, sequences, expected, stored=stored, compute=compute, model=model)
    number, kind = difference.num_outputs, difference.quantity
    other = "the model in training" if trained is not None else "the model rebuilt from the shards"
    if not difference.is_within_limits:
        raise ConfigError(
            f"the {kind} of {number} tokens differ from those of {other} by up to {difference}, so nothing was "
            "exported: check the config and the adapter's settings, or export another step"
        )
    if difference.mean_limit > _MOST_MEAN_LIMIT:
        raise ConfigError(
            f"the exported model can't be verified, because rounding alone may change its {kind} by "
            f"{difference.mean_limit:.2g} on average: export it with --dtype fp32, or without --verify"
        )
    same = f"the {kind} of {number} tokens equal those of {other} within {difference}"
    if trained is None:
        return f"{_WEAKER}there is no {TRAINED_OUTPUTS} in the checkpoint): {same}"
    scales = f", and the scales of {len(model.adapter.downs)} adapters equal the trainer's" if model.adapter else ""
    return f"verified: {same}{scales}"


def _check_fits(trained: TrainedOutputs, model: ShardedModel, *, vocab_size: int) -> None:
    """Raise ConfigError unless `trained` is of a model with this vocabulary, kind and adapter."""
    if (trained.quantity == VALUES) != model.layout.is_critic:
        raise ConfigError(
            f"{TRAINED_OUTPUTS} has the {_NAMES[trained.quantity]} of another kind of model than a "
            f"{model.layout.kind}: restore the files of one checkpoint"
        )
    if max(map(max, trained.sequences)) >= vocab_size:
        raise ConfigError(
            f"{TRAINED_OUTPUTS} has tokens beyond the vocabulary of {vocab_size}: give the config of the trained model"
        )
    adapter = model.adapter
    scales = count_scales(adapter.scales()) if adapter else {}
    if scales != trained.adapter_scales:
        raise ConfigError(
            f"the adapter's scales are {_listed(scales)}, but {_listed(trained.adapter_scales)} in training: correct "
            "the checkpoint's LoRA settings"
        )


def _listed(scales: Mapping[str, int]) -> str:
    return ", ".join(f"{scale} for {number} modules" for scale, number in list(scales.items())[:8]) or "no adapter"


def _difference(
    exported: nn.Module,
    sequences: Sequence[Sequence[int]],
    expected: Tensor,
    *,
    stored: torch.dtype,
    compute: torch.dtype,
    model: ShardedModel,
) -> OutputDifference:
    is_critic = model.layout.is_critic
    # The model is converted in place, first to the precision that it is stored in or a finer one.
    coarse = max(stored, compute, key=lambda dtype: torch.finfo(dtype).eps)
    if coarse == torch.float32:
        found = _outputs(exported.to(compute), sequences, is_critic=is_critic)
        noise = torch.zeros_like(found)
    else:
        first, second = (coarse, torch.float32) if stored == coarse else (torch.float32, coarse)
        by_dtype = {dtype: _outputs(exported.to(dtype), sequences, is_critic=is_critic) for dtype in (first, second)}
        found = by_dtype.get(compute, by_dtype[torch.float32])
        noise = (by_dtype[coarse] - by_dtype[torch.float32]).abs()
    difference = (found - expected).abs()
    # verl's own engine also rounds log-probabilities.
    is_rounded = torch.equal(expected, expected.to(coarse).double()) and coarse != torch.float32
    rounding = expected.abs() * torch.finfo(coarse).eps * is_rounded
    return OutputDifference(
        quantity=_NAMES[VALUES if is_critic else LOG_PROBS],
        num_outputs=len(found),
        mean=float(difference.mean()),
        largest=float(difference.max()),
        mean_limit=_MEAN_DIFFERENCE + _MEAN_FACTOR * float(noise.mean()) + float(rounding.mean()) / 2,
        largest_limit=_LARGEST_DIFFERENCE + _LARGEST_FACTOR * float(noise.max()) + float(rounding.max()),
    )


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


def _load_exported(folder: Path, model: ShardedModel, *, trust: bool) -> tuple[nn.Module, torch.dtype]:
    """Load the model in `folder` as a user would, and return it with the dtype of its weights on disk."""
    layout, stored = model.layout, read_safetensors(folder)
    dtype = max(stored.values(), key=lambda tensor: math.prod(tensor.shape)).dtype
    if (folder / "adapter_config.json").is_file():
        import peft

        base = _build_model(layout, {name: read_all(tensor) for name, tensor in model.tensors.items()}, dtype)
        return peft.PeftModel.from_pretrained(base, folder), dtype
    loaded = layout.auto_class.from_pretrained(folder, dtype=dtype, trust_remote_code=trust)
    head = [read_all(stored[name]).to(dtype) for name in VALUE_HEAD if name in stored]
    return (loaded if not head else _WithValueHead(loaded, *head)), dtype


class _WithValueHead(nn.Module):
    """A model with trl's value head: returns a value per token, linear in the last hidden state, instead of logits."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor):
        super().__init__()
        self.model, self.weight, self.bias = model, nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1]
        return nn.functional.linear(hidden, self.weight, self.bias)


@torch.inference_mode()
def _outputs(model: nn.Module, sequences: Sequence[Sequence[int]], *, is_critic: bool) -> Tensor:
    """Return the log-probability of each token but the first of a sequence, or the value before it, in float64."""
    found = []
    for sequence in sequences:
        ids = torch.tensor([sequence])
        output = model.eval()(ids)
        logits = (output if isinstance(output, Tensor) else output.logits).double()
        if is_critic:
            # A sequence classifier has one output per sequence.
            found.append(logits[0, :-1].flatten() if logits.dim() == 3 else logits.flatten())
        else:
            found.append(torch.log_softmax(logits[0, :-1], dim=-1).gather(-1, ids[0, 1:, None])[:, 0])
    return torch.cat(found)


def _check_tokenizer(folder: Path, *, trust: bool) -> None:
    if not (folder / TOKENIZER_CONFIG).is_file():
        return
    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:  # tokenizers raises plain Exceptions.
        raise ConfigError(
            f"the exported tokenizer can't be loaded ({first_line(error)}): give HF_CONFIG_DIR with a working one"
        ) from error
