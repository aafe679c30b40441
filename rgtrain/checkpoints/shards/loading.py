"""Load the tensors of an FSDP or Megatron checkpoint and check them against the model's config."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rgtrain.checkpoints.adapter_config import AdapterConfig
from rgtrain.checkpoints.hugging_face import ModelFiles
from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.layout import ModelLayout, check_fits, model_layout
from rgtrain.checkpoints.shards.lora import (
    SETTINGS,
    Adapter,
    build_adapter,
    is_adapter_tensor,
    read_settings,
    unwrapped_name,
)
from rgtrain.checkpoints.shards.megatron import merged_by_verl
from rgtrain.checkpoints.shards.safetensors_reader import holds_safetensors, read_safetensors
from rgtrain.checkpoints.shards.saved_format import model_tensors
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.checkpoints.shards.tensors import SplitTensor, TensorSource
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.errors import ConfigError


@dataclass(frozen=True)
class ShardedModel:
    """The tensors of a checkpoint's model, left on disk.

    Attributes:
        layout: The tensors that the config describes.
        tensors: The tensors by name, without the adapter's. Empty if only an adapter was saved.
        num_bytes: The total size of the files that hold the tensors.
        adapter: The LoRA adapter, if there is one.
    """

    layout: ModelLayout
    tensors: Mapping[str, TensorSource]
    num_bytes: int
    adapter: Adapter | None = None

    def merged_tensors(self) -> dict[str, TensorSource]:
        """Return the model's tensors with the adapter merged. Raise ConfigError if they don't match the config."""
        tensors, layout = dict(self.tensors), self.layout
        if self.adapter:
            tensors = self.adapter.merge_into(tensors, transposed=layout.transposed, aliases=layout.aliases)
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
    """Load the model of a checkpoint.

    Args:
        checkpoint: A complete checkpoint.
        model_files: The config of the model. If only an adapter was saved, its folder also has the base weights.
        trust: Whether code in the checkpoint's and the model's files may run.
        scratch: A folder for temporary files.
        resources: Closing this stack removes the temporary files.
        progress: Updated while files are read.

    Returns:
        The model.

    Raises:
        ConfigError: The files are damaged or don't belong together, or the adapter can't be merged.
    """
    if checkpoint.is_megatron:
        merged = merged_by_verl(checkpoint, scratch=scratch, trust=trust)
        tensors = read_safetensors(resources.enter_context(merged))
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        layout = model_layout(model_files, shapes, max_parts=_max_parts(shapes), trust=trust)
        return ShardedModel(
            layout, model_tensors(tensors, layout.shapes, layout.model), num_bytes=_num_file_bytes(tensors)
        )
    files = RankFiles(checkpoint.rank_files, trust=trust, progress=progress)
    plain = _unwrapped_names(files)
    if plain or model_files.quantization or not holds_safetensors(model_files.origin):
        stored, shapes = {}, {name: files.shape_on_rank_zero(saved) for saved, name in plain.items()}
    else:
        stored = read_safetensors(model_files.origin)
        shapes = {name: tensor.shape for name, tensor in stored.items()}
    num_bytes = files.num_bytes + _num_file_bytes(stored)
    layout = model_layout(model_files, shapes, max_parts=_max_parts(shapes), trust=trust)
    base = model_tensors(stored, layout.shapes, layout.model)
    for saved, name in plain.items():
        base[name] = replace(files.merge(saved, expected=layout.shapes.get(name)), name=name)
    factors = [name for name in files.names if is_adapter_tensor(name)]
    if not factors:
        return ShardedModel(layout, base, num_bytes)
    settings = read_settings(checkpoint.folder)
    if not plain and settings.trained_base:
        raise ConfigError(
            f"the checkpoint holds only an adapter, but its {SETTINGS} has {' and '.join(settings.trained_base)}, "
            "which changed the base model too: train with save_lora_only=false, or export another run"
        )
    joined = [_merge_factor(files, name, layout, settings) for name in factors]
    fully_trained = tuple(name for saved, name in plain.items() if ".modules_to_save." in saved)
    adapter = build_adapter(
        joined, settings, shapes=layout.shapes, transposed=layout.transposed, fully_trained=fully_trained
    )
    return ShardedModel(layout, base, num_bytes, adapter)


def _num_file_bytes(tensors: Mapping[str, SplitTensor]) -> int:
    files = {piece.file for tensor in tensors.values() for piece in tensor.pieces}
    return sum(file.num_bytes for file in files)


def _max_parts(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the maximum number of modules and parameters of a model with these tensors."""
    # Without tensors, only an adapter was saved, which says little about the size of its base model.
    return 10_000 + 10 * len(shapes) if shapes else 100_000


def _unwrapped_names(files: RankFiles) -> dict[str, str]:
    """Map the name of each tensor in the files, except those of adapters, to its name in the model."""
    # PEFT keeps the original of each module that it trains in full (modules_to_save).
    saved = [name for name in files.names if not is_adapter_tensor(name) and ".original_module." not in name]
    plain = {name: unwrapped_name(name) for name in saved}
    [(twice, count)] = Counter(plain.values()).most_common(1) or [("", 0)]
    if count > 1:
        raise ConfigError(f"the checkpoint has tensor {twice!r} under several wrapped names, so it can't be exported")
    return plain


def _merge_factor(files: RankFiles, name: str, layout: ModelLayout, settings: AdapterConfig) -> TensorSource:
    # Plain tensors are merged to an expected shape, which is known only for factors of linear layers.
    module, _, side = unwrapped_name(name).partition(".lora_")
    expected, weight = None, layout.shapes.get(f"{module}.weight")
    if weight is not None and len(weight) == 2 and side[:1] in ("A", "B"):
        outputs, inputs = weight[::-1] if module in layout.transposed else weight
        rank = settings.rank_of(f"{module}.weight")
        expected = (rank, inputs) if side[0] == "A" else (outputs, rank)
    factor = files.merge(name, expected=expected)
    if expected is not None and factor.shape != expected:
        raise ConfigError(
            f"tensor {name!r} has shape {list(factor.shape)} in the checkpoint, but the config and the adapter's rank "
            f"require {list(expected)}: give the config of the trained model"
        )
    return factor
