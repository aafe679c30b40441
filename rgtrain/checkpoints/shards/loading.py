"""The tensors of a checkpoint's model, whatever wrote it, checked against the config."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rgtrain.checkpoints.hugging_face import ModelFiles
from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.layout import ModelLayout, check_fits, model_layout
from rgtrain.checkpoints.shards.lora import Adapter, LoraSettings, is_lora, plain_name, read_settings, split_adapter
from rgtrain.checkpoints.shards.megatron import merged_by_verl
from rgtrain.checkpoints.shards.safetensors_reader import holds_safetensors, read_safetensors
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.checkpoints.shards.tensors import SplitTensor, TensorSource
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.errors import ConfigError


@dataclass(frozen=True)
class ShardedModel:
    """`tensors` of the model by name (without its adapter; none of them if only the adapter was saved).

    `num_bytes` is the size of the files that the tensors are read from.
    """

    layout: ModelLayout
    tensors: Mapping[str, TensorSource]
    num_bytes: int
    adapter: Adapter | None = None

    def merged(self) -> dict[str, TensorSource]:
        """The tensors of the whole model, the adapter's changes made. Raises ConfigError where some are missing."""
        tensors = self.adapter.merged(self.tensors) if self.adapter else dict(self.tensors)
        check_fits(tensors, self.layout)
        return tensors


def load_model(
    checkpoint: Checkpoint,
    model_files: ModelFiles,
    *,
    trust: bool,
    scratch: Path,
    resources: ExitStack,
    progress: ExportProgress,
) -> ShardedModel:
    """The model of `checkpoint`, whose config is in `model_files`, and so are weights that the checkpoint lacks.

    Files that are needed meanwhile go to the folder `scratch`, and are removed when `resources` are closed. Progress is
    noted in `progress`.
    """
    if checkpoint.is_megatron:
        merged = merged_by_verl(checkpoint, beside=scratch, trust=trust)
        tensors = read_safetensors(resources.enter_context(merged))
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        layout = model_layout(model_files, shapes, most_parts=_most_parts(shapes), trust=trust)
        return ShardedModel(layout, tensors, _held_bytes(tensors))
    files = RankFiles(checkpoint.rank_files, trust=trust, progress=progress)
    plain = _plain_names(files)
    if plain or not holds_safetensors(model_files.origin):
        base, shapes = {}, {name: files.shape_on_rank_zero(saved) for saved, name in plain.items()}
    else:
        base = read_safetensors(model_files.origin)
        shapes = {name: tensor.shape for name, tensor in base.items()}
    num_bytes = files.num_bytes + _held_bytes(base)
    layout = model_layout(model_files, shapes, most_parts=_most_parts(shapes), trust=trust)
    for saved, name in plain.items():
        base[name] = replace(files.join(saved, expected=layout.shapes.get(name)), name=name)
    factors = [name for name in files.names if is_lora(name)]
    if not factors:
        return ShardedModel(layout, base, num_bytes)
    settings = read_settings(checkpoint.folder)
    joined = [_joined_factor(files, name, layout, settings) for name in factors]
    whole_modules = tuple(name for saved, name in plain.items() if ".modules_to_save." in saved)
    return ShardedModel(layout, base, num_bytes, split_adapter(joined, settings, whole_modules=whole_modules))


def _held_bytes(tensors: Mapping[str, SplitTensor]) -> int:
    files = {piece.file for tensor in tensors.values() for piece in tensor.pieces}
    return sum(file.num_bytes for file in files)


def _most_parts(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many modules and parameters a model of these tensors can have; an adapter alone tells little of its base."""
    return 10_000 + 10 * len(shapes) if shapes else 100_000


def _plain_names(files: RankFiles) -> dict[str, str]:
    """Name in the files -> name in the model, of all tensors but those of adapters."""
    # What PEFT keeps of a module that it trains whole.
    saved = [name for name in files.names if not is_lora(name) and ".original_module." not in name]
    plain = {name: plain_name(name) for name in saved}
    [(twice, count)] = Counter(plain.values()).most_common(1) or [("", 0)]
    if count > 1:
        raise ConfigError(f"the checkpoint has tensor {twice!r} more than once, under several wrappers' names")
    return plain


def _joined_factor(files: RankFiles, name: str, layout: ModelLayout, settings: LoraSettings) -> TensorSource:
    # Plain tensors are put together to an expected shape, which only the factors of linear layers have.
    module, _, side = plain_name(name).partition(".lora_")
    expected, weight = None, layout.shapes.get(f"{module}.weight")
    if weight is not None and len(weight) == 2 and side[:1] in ("A", "B"):
        expected = (settings.rank, weight[1]) if side[0] == "A" else (weight[0], settings.rank)
    factor = files.join(name, expected=expected)
    if expected is not None and factor.shape != expected:
        raise ConfigError(
            f"tensor {name!r} is {list(factor.shape)} in the checkpoint, but the config and the adapter's rank make it "
            f"{list(expected)}: give the config of the model that was trained"
        )
    return factor
