"""LoRA adapters in a checkpoint, which use PEFT's names: merge them into the weights, or extract them."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgtrain.checkpoints.adapter_config import EXAMPLE, AdapterConfig, read_adapter_config
from rgtrain.checkpoints.shards.tensors import SplitTensor, TensorSource, read_all
from rgtrain.checkpoints.untrusted_files import read_json_object
from rgtrain.errors import ConfigError

PREFIX = "base_model.model."
# verl's RL trainer writes this file to the folder of the rank files, its SFT trainer to the parent folder.
SETTINGS = "lora_train_meta.json"
_MAX_SETTINGS_BYTES = 2**20
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])\.[^.]+?(?:\.weight)?")


def is_adapter_tensor(name: str) -> bool:
    """Return whether the checkpoint's tensor `name` belongs to an adapter."""
    return "lora_" in name


def unwrapped_name(name: str) -> str:
    """Return a tensor's name in the model without the wrappers of PEFT and trl."""
    name = name.removeprefix(PREFIX).removeprefix("pretrained_model.")
    return re.sub(r"(?:\.base_layer)+\.|\.modules_to_save\.[^.]+\.", ".", name)


def read_settings(folder: Path) -> AdapterConfig:
    """Read the settings saved with the checkpoint in `folder`.

    verl saves only the rank, alpha and task type. Our workers save all fields that differ from PEFT's defaults.

    Args:
        folder: The folder of the rank files.

    Returns:
        The settings.

    Raises:
        ConfigError: There are none, or they are invalid or unsupported.
    """
    path = next((path for path in (folder / SETTINGS, folder.parent / SETTINGS) if path.exists()), None)
    if path is None:
        raise ConfigError(
            f"{str(folder)!r} holds a LoRA adapter, but no {SETTINGS} with its scale: write one like {EXAMPLE} with "
            "the run's actor_rollout_ref.model.lora_rank and lora_alpha"
        )
    return read_adapter_config(read_json_object(path, max_bytes=_MAX_SETTINGS_BYTES), where=str(path))


@dataclass(frozen=True)
class MergedTensor:
    """A weight with its adapter merged: base + scale * up @ down, in float32 or better and rounded once.

    The product is transposed for embeddings and for layers that store weights as inputs x outputs. The formula is from
    section 4.1 of https://arxiv.org/abs/2106.09685. Weights of experts have the shape experts x outputs x inputs. Their
    factors are one below another in `down`, and interleaved in `up`.
    """

    base: TensorSource
    down: TensorSource
    up: TensorSource
    scale: float
    transposed: bool

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return self.base.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of the merged weight."""
        down, up = self._factors
        base = self.base.rows(start, stop)
        merged = merged_rows(
            base, down, up, scale=self.scale, transposed=self.transposed, start=start, num_rows=self.shape[0]
        )
        return merged.to(base.dtype)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        precision = torch.promote_types(self.dtype, torch.float32)
        return read_all(self.down).to(precision), read_all(self.up).to(precision)


def merged_rows(
    base: Tensor, down: Tensor, up: Tensor, *, scale: float, transposed: bool, start: int, num_rows: int
) -> Tensor:
    """Merge an adapter into rows of a weight: base + scale * up @ down, as described in `MergedTensor`.

    Args:
        base: Rows of the weight: outputs x inputs, or experts x outputs x inputs.
        down: The whole factor A (rank x inputs), in float32 or better.
        up: The whole factor B (outputs x rank), in the same dtype.
        scale: The factor of the adapter's change.
        transposed: Whether the weight is stored as inputs x outputs.
        start: The number of the first row of `base` in the weight.
        num_rows: The number of the weight's rows.

    Returns:
        The merged rows in the dtype of the factors.
    """
    stop = start + len(base)
    if base.dim() == 3:
        downs = down.reshape(num_rows, -1, down.shape[1])[start:stop]
        ups = up.reshape(up.shape[0], -1, num_rows)[..., start:stop]
        added = torch.einsum("ore,eri->eio" if transposed else "ore,eri->eoi", ups, downs)
    else:
        added = down[:, start:stop].T @ up.T if transposed else up[start:stop] @ down
    return base.to(added.dtype) + scale * added


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as saved.

    Attributes:
        settings: The fields of its configuration that determine the merged weights.
        downs: The factors A (rank x inputs) by the name of the module that they change, in PEFT's form with one
            `.base_layer` for each other adapted parameter of the module.
        ups: The factors B (outputs x rank) by the name of the module.
        weights: The name of the changed tensor by the name of the module.
        embeddings: The names of changed modules that are embeddings.
        fully_trained: The names of tensors that were trained in full, without factors.
    """

    settings: AdapterConfig
    downs: Mapping[str, TensorSource]
    ups: Mapping[str, TensorSource]
    weights: Mapping[str, str]
    embeddings: frozenset[str]
    fully_trained: tuple[str, ...]

    def named_tensors(self) -> dict[str, TensorSource]:
        """Return the factors by their names in a PEFT adapter file."""
        named = {}
        for sides, side in ((self.downs, "A"), (self.ups, "B")):
            for module, factor in sides.items():
                ending = f"lora_embedding_{side}" if module in self.embeddings else f"lora_{side}.weight"
                named[f"{PREFIX}{module}.{ending}"] = factor
        return named

    def target_modules(self, shapes: Iterable[str]) -> list[str]:
        """Return the changed modules in the form of PEFT's config.

        Args:
            shapes: The names of all tensors of the model.

        Returns:
            The last parts of the modules' names if no other module of the model has one of them, else full names.
        """
        changed = {module for module, weight in self.weights.items() if not self.settings.is_target_parameter(weight)}
        last_names = {module.rpartition(".")[2] for module in changed}
        modules = {name.removesuffix(".weight") for name in shapes}
        matching = {module for module in modules if module.rpartition(".")[2] in last_names}
        return sorted(last_names) if matching == changed else sorted(changed)

    def scales(self) -> list[float]:
        """Return the scale of each module's adapter."""
        return [self.settings.scale_of(weight) for weight in self.weights.values()]

    def peft_config(self, shapes: Iterable[str]) -> dict[str, Any]:
        """Return the fields of PEFT's LoraConfig with which peft loads the factors of `named_tensors`.

        Args:
            shapes: The names of all tensors of the model.

        Returns:
            The fields by name, in the types of JSON.
        """
        return self.settings.peft_fields() | {"target_modules": self.target_modules(shapes)}

    def merge_into(
        self,
        tensors: Mapping[str, TensorSource],
        *,
        transposed: Collection[str] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> dict[str, TensorSource]:
        """Merge the adapter into the tensors of its base model.

        Args:
            tensors: The base model's tensors by unwrapped name.
            transposed: The modules that store weights as inputs x outputs (`Conv1D` of transformers).
            aliases: The names of tied tensors, each with the name of the tensor whose values it shares. The adapter
                changes only the one that it names.

        Returns:
            The same tensors with changed weights replaced by merged ones.

        Raises:
            ConfigError: A changed weight is missing, or its shape doesn't match its factors.
        """
        changed = dict(tensors)
        for alias, source in (aliases or {}).items():
            whole = tensors.get(source)
            if alias not in tensors and isinstance(whole, SplitTensor) and self._changes(alias, source):
                changed[alias] = replace(whole, name=alias)
        for module, down in self.downs.items():
            up, name = self.ups[module], self.weights[module]
            if (base := changed.get(name)) is None:
                raise ConfigError(
                    f"the adapter changes {name!r}, which is neither in the checkpoint nor in the config's folder: "
                    "give HF_CONFIG_DIR with the base model's weights, or export only the adapter with --lora adapter"
                )
            is_transposed = module in self.embeddings or name.rpartition(".")[0] in transposed
            size = (up.shape[0], down.shape[1])
            if base.shape[-2:] != (size[::-1] if is_transposed else size) or len(base.shape) > 3:
                raise ConfigError(
                    f"the adapter of {name!r} has shape {list(size)} but the tensor {list(base.shape)}: use "
                    "--lora adapter, because only adapters of linear layers and embeddings can be merged"
                )
            changed[name] = MergedTensor(base, down, up, self.settings.scale_of(name), is_transposed)
        return changed

    def _changes(self, *names: str) -> bool:
        return any(name in self.weights.values() for name in names)


def build_adapter(
    factors: Iterable[TensorSource],
    settings: AdapterConfig,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    transposed: Collection[str] = (),
    fully_trained: tuple[str, ...] = (),
) -> Adapter:
    """Group the tensors of an adapter by module.

    Args:
        factors: All tensors of the checkpoint for which `is_adapter_tensor` is true.
        settings: The adapter's settings.
        shapes: The shapes of the model's tensors by name.
        transposed: The modules that store weights as inputs x outputs.
        fully_trained: The names of tensors that were trained in full.

    Returns:
        The adapter.

    Raises:
        ConfigError: The adapter is not plain LoRA (but DoRA, for example), a module has only one factor, or the rank
            differs from the settings.
    """
    downs: dict[str, TensorSource] = {}
    ups: dict[str, TensorSource] = {}
    embeddings: set[str] = set()
    for factor in factors:
        match = _FACTOR.fullmatch(factor.name.removeprefix(PREFIX))
        if match is None or len(factor.shape) != 2 or not factor.dtype.is_floating_point:
            raise ConfigError(
                f"tensor {factor.name!r} can't be exported, because only plain LoRA on linear layers and embeddings is "
                "supported"
            )
        module, is_down = match["module"], match["side"] == "A"
        side = downs if is_down else ups
        if module in side:
            raise ConfigError(f"{module!r} has several adapters, such as {factor.name!r}, but only one can be exported")
        side[module] = factor
        if match["embedding"]:
            embeddings.add(module)
    if odd := sorted(downs.keys() ^ ups.keys()):
        raise ConfigError(f"the adapter of {odd[0]!r} has only one of its two factors: use another step")
    weights = {}
    for module, down in downs.items():
        weight = weights[module] = _changed_weight(module, down, ups[module], shapes, transposed)
        num_experts = shapes[weight][0] if len(shapes.get(weight, ())) == 3 else 1
        rank = settings.rank_of(weight) * num_experts
        for factor, size in ((down, down.shape[0]), (ups[module], ups[module].shape[1])):
            if size != rank:
                raise ConfigError(
                    f"tensor {factor.name!r} has shape {list(factor.shape)}, but {SETTINGS} requires a rank of {rank}: "
                    "correct that file"
                )
    return Adapter(settings, downs, ups, weights, frozenset(embeddings), fully_trained)


def _changed_weight(
    module: str,
    down: TensorSource,
    up: TensorSource,
    shapes: Mapping[str, tuple[int, ...]],
    transposed: Collection[str],
) -> str:
    """Return the name of the tensor that the factors of `module` change: its weight, or a parameter of its experts."""
    plain = module.replace(".base_layer", "")
    size = (up.shape[0], down.shape[1])
    fitting = [
        name
        for name, shape in shapes.items()
        if len(shape) == 3 and name.rpartition(".")[0] == plain
        if shape[1:] == (size[::-1] if plain in transposed else size)
    ]
    if len(fitting) > 1:
        raise ConfigError(
            f"the adapter of {plain!r} fits {' and '.join(fitting)}: merge it with peft before the export"
        )
    return fitting[0] if fitting else f"{plain}.weight"
