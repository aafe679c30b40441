"""Whether an exported model is the checkpoint's: the tensors as they lie on disk, and the logits that both compute."""

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
from rgtrain.checkpoints.shards.tensors import TensorSource, blocks, one_torch_thread, same_bits, whole
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.checkpoints.untrusted_files import first_line
from rgtrain.errors import ConfigError

PROMPT = "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Think step by step."


@dataclass(frozen=True)
class Difference:
    """How far the logits of both models are apart on PROMPT: the largest difference, and the largest logit."""

    largest: float
    magnitude: float
    num_same_top: int
    num_positions: int

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.largest:.3g}, of logits up to {self.magnitude:.3g}; the same token on "
            f"top at {self.num_same_top} of {self.num_positions} positions"
        )


def check_written(
    folder: Path, tensors: Mapping[str, TensorSource], *, dtype: torch.dtype | None, progress: ExportProgress
) -> None:
    """Read all of `folder`'s tensors back: raises ConfigError, naming one, unless they are `tensors` bit for bit."""
    written = read_safetensors(folder)
    if odd := sorted(written.keys() ^ tensors.keys()):
        raise ConfigError(f"the exported files and the checkpoint differ in tensor {odd[0]!r}: export again")
    with one_torch_thread():
        for name, source in tensors.items():
            progress.moved(f"tensor {name!r} as it was written")
            if not _reads_back(source, written[name], written_dtype(source, dtype)):
                raise ConfigError(
                    f"tensor {name!r} reads back otherwise than it was written: check the disk, try again"
                )


def _reads_back(source: TensorSource, stored: TensorSource, dtype: torch.dtype) -> bool:
    start = 0
    for block in blocks(source):
        num_rows = block.shape[0] if block.dim() else 1
        if not same_bits(block.to(dtype), stored.rows(start, start + num_rows)):
            return False
        start += num_rows
    return True


def compare_logits(
    folder: Path, model: ShardedModel, tensors: Mapping[str, TensorSource], *, trust: bool = False
) -> Difference:
    """Run the model exported to `folder` and the one put together from the shards on PROMPT, one after the other.

    Both compute in the checkpoint's precision, so that what differs comes from the weights. `trust` lets the model's
    own code run. Raises ConfigError if they differ by more than rounding: the square root of the written precision,
    relative to the largest logit.
    """
    layout = model.layout
    precision = max(tensors.values(), key=lambda tensor: math.prod(tensor.shape)).dtype
    ids = _prompt_ids(folder, layout, trust=trust)
    expected = _outputs(_from_shards(model, precision), ids)
    exported, stored = _exported(folder, model, precision, trust=trust)
    got = _outputs(exported, ids)
    difference = Difference(
        largest=float((got - expected).abs().max()),
        magnitude=float(expected.abs().max()),
        num_same_top=int((got.argmax(-1) == expected.argmax(-1)).sum()),
        num_positions=got.shape[-2],
    )
    limit = math.sqrt(torch.finfo(stored).eps) * difference.magnitude
    if not difference.largest <= limit:
        raise ConfigError(f"the exported model isn't the checkpoint's: {difference}")
    return difference


def _from_shards(model: ShardedModel, precision: torch.dtype) -> nn.Module:
    base = _built(model.layout, {name: whole(tensor) for name, tensor in model.tensors.items()}, precision)
    return base if model.adapter is None else _adapted(base, model.adapter, model.layout)


def _built(layout: ModelLayout, state: dict[str, Tensor], precision: torch.dtype) -> nn.Module:
    config = copy.deepcopy(layout.config)
    if any(alias in state and not torch.equal(state[alias], state[name]) for alias, name in layout.aliases.items()):
        config.tie_word_embeddings = False
    head = [state.pop(name) for name in VALUE_HEAD if name in state]
    model = layout.model_class.from_pretrained(None, config=config, state_dict=state, dtype=precision)
    return model if not head else _WithValueHead(model, *head)


def _adapted(base: nn.Module, adapter: Adapter, layout: ModelLayout) -> nn.Module:
    """The base model with the adapter beside its weights, as PEFT computed it in training."""
    import peft

    settings = adapter.settings
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=adapter.target_modules(layout.shapes)
    )
    model = peft.get_peft_model(base, config)
    factors = {name: whole(tensor) for name, tensor in adapter.named_tensors().items()}
    if unknown := peft.set_peft_model_state_dict(model, factors).unexpected_keys:
        raise ConfigError(f"PEFT finds no place for the adapter's tensor {unknown[0]!r} in the model")
    return model


def _exported(
    folder: Path, model: ShardedModel, precision: torch.dtype, *, trust: bool
) -> tuple[nn.Module, torch.dtype]:
    """The model in `folder` as a user loads it, and the precision of its weights on disk."""
    layout, stored = model.layout, read_safetensors(folder)
    dtype = max(stored.values(), key=lambda tensor: math.prod(tensor.shape)).dtype
    if (folder / "adapter_config.json").is_file():
        import peft

        base = _built(layout, {name: whole(tensor) for name, tensor in model.tensors.items()}, precision)
        return peft.PeftModel.from_pretrained(base, folder), dtype
    loaded = layout.auto_class.from_pretrained(folder, dtype=precision, trust_remote_code=trust)
    head = [whole(stored[name]).to(precision) for name in VALUE_HEAD if name in stored]
    return (loaded if not head else _WithValueHead(loaded, *head)), dtype


class _WithValueHead(nn.Module):
    """trl's value of each token, a linear function of the last hidden state, in place of the logits."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor):
        super().__init__()
        self.model, self.weight, self.bias = model, weight, bias

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1]
        return nn.functional.linear(hidden, self.weight, self.bias)


@torch.inference_mode()
def _outputs(model: nn.Module, ids: Tensor) -> Tensor:
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
            f"the exported tokenizer can't be loaded ({first_line(error)}): give HF_CONFIG_DIR with a sound one"
        ) from error
    return torch.tensor([ids]) % vocab_size
