"""LoRA adapters in a checkpoint, under PEFT's names: merged into the weights, or taken out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rgtrain.checkpoints.shards.tensors import TensorSource, whole
from rgtrain.checkpoints.untrusted_files import quoted, read_json_object
from rgtrain.errors import ConfigError

PREFIX = "base_model.model."
# verl writes this file beside the rank files, and its trainer for supervised fine-tuning beside that folder.
SETTINGS = "lora_train_meta.json"
_MOST_SETTINGS_BYTES = 64 * 1024
_MOST_RANK = _MOST_ALPHA = 2**20
_TASK_TYPE = re.compile(r"[A-Z0-9_]{1,40}", re.ASCII)
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])\.[^.]+?(?:\.weight)?")


@dataclass(frozen=True)
class LoraSettings:
    """What scales an adapter: the product of its factors counts `alpha / rank` times."""

    rank: int
    alpha: float
    task_type: str

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def is_lora(name: str) -> bool:
    """Whether the checkpoint's tensor `name` belongs to an adapter."""
    return "lora_" in name


def plain_name(name: str) -> str:
    """The name that a tensor has in the model without PEFT's or trl's wrappers."""
    name = name.removeprefix(PREFIX).removeprefix("pretrained_model.")
    return re.sub(r"\.base_layer\.|\.modules_to_save\.[^.]+\.", ".", name)


def read_settings(folder: Path) -> LoraSettings:
    """The settings that verl saved with the checkpoint in `folder`. Raises ConfigError where there are none."""
    path = next((path for path in (folder / SETTINGS, folder.parent / SETTINGS) if path.exists()), None)
    example = '{"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM"}'
    if path is None:
        raise ConfigError(
            f"{str(folder)!r} holds a LoRA adapter, but no {SETTINGS} that tells its scale: write one as {example}, "
            "from the run's actor_rollout_ref.model.lora_rank and lora_alpha"
        )
    settings = read_json_object(path, most_bytes=_MOST_SETTINGS_BYTES)
    rank, alpha, task_type = settings.get("r"), settings.get("lora_alpha"), settings.get("task_type", "CAUSAL_LM")
    if (
        type(rank) is not int
        or type(alpha) is bool
        or not isinstance(alpha, int | float)
        or not isinstance(task_type, str)
    ):
        raise ConfigError(f"{str(path)!r} holds no LoRA settings: it should read as {example}")
    if not 1 <= rank <= _MOST_RANK or not 0 < abs(alpha) <= _MOST_ALPHA or not _TASK_TYPE.fullmatch(task_type):
        raise ConfigError(
            f"{str(path)!r} has r {str(rank)[:30]}, lora_alpha {str(alpha)[:30]} and task_type {quoted(task_type)}: "
            f"r may be 1 to {_MOST_RANK}, lora_alpha up to {_MOST_ALPHA} and not 0, task_type one of PEFT's"
        )
    return LoraSettings(rank, float(alpha), task_type)


@dataclass(frozen=True)
class MergedTensor:
    """A weight with its adapter added: base + scale * up @ down (transposed for embeddings), rounded once.

    The formula is LoRA's, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    base: TensorSource
    down: TensorSource
    up: TensorSource
    scale: float
    transposed: bool

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        down, up = self._factors
        added = down[:, start:stop].T @ up.T if self.transposed else up[start:stop] @ down
        base = self.base.rows(start, stop)
        return (base.to(added.dtype) + self.scale * added).to(base.dtype)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        precision = torch.promote_types(self.dtype, torch.float32)
        return whole(self.down).to(precision), whole(self.up).to(precision)


@dataclass(frozen=True)
class Adapter:
    """The factors of one adapter by the module that they change, as saved.

    `embeddings` are the changed modules that are embeddings. `whole_modules` are tensors of modules that were trained
    whole, without factors.
    """

    settings: LoraSettings
    downs: Mapping[str, TensorSource]
    ups: Mapping[str, TensorSource]
    embeddings: frozenset[str]
    whole_modules: tuple[str, ...]

    def named_tensors(self) -> dict[str, TensorSource]:
        """The factors under the names they have in a PEFT adapter's file."""
        named = {}
        for sides, side in ((self.downs, "A"), (self.ups, "B")):
            for module, factor in sides.items():
                ending = f"lora_embedding_{side}" if module in self.embeddings else f"lora_{side}.weight"
                named[f"{PREFIX}{module}.{ending}"] = factor
        return named

    def target_modules(self, shapes: Iterable[str]) -> list[str]:
        """The changed modules as PEFT's config names them: by their last names if these mean no others in the model.

        `shapes` are the names of all tensors of the model.
        """
        last_names = {module.rpartition(".")[2] for module in self.downs}
        modules = {name.removesuffix(".weight") for name in shapes}
        meant = {module for module in modules if module.rpartition(".")[2] in last_names}
        return sorted(last_names) if meant == self.downs.keys() else sorted(self.downs)

    def merged(self, tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        """`tensors` of the base model (by plain name) with the adapter's changes.

        Raises ConfigError where a factor's shape doesn't fit the weight it changes.
        """
        changed = dict(tensors)
        for module, down in self.downs.items():
            up, name = self.ups[module], f"{module}.weight"
            if (base := tensors.get(name)) is None:
                raise ConfigError(
                    f"the adapter changes {name!r}, which neither the checkpoint nor the folder of the config holds: "
                    "give HF_CONFIG_DIR with the base model's weights, or take the adapter out with --lora adapter"
                )
            transposed = module in self.embeddings
            size = (up.shape[0], down.shape[1])
            if base.shape != (size[::-1] if transposed else size):
                raise ConfigError(
                    f"the adapter of {name!r} is of {list(size)}, the tensor of {list(base.shape)}: only adapters of "
                    "linear layers and embeddings can be merged; take it out with --lora adapter"
                )
            changed[name] = MergedTensor(base, down, up, self.settings.scale, transposed)
        return changed


def split_adapter(
    factors: Iterable[TensorSource], settings: LoraSettings, *, whole_modules: tuple[str, ...]
) -> Adapter:
    """The adapter that `factors`, all tensors for which `is_lora`, make up; `whole_modules` as in Adapter.

    Raises ConfigError for more than plain LoRA (a magnitude of DoRA, say), a factor without its partner, or another
    rank than the settings'.
    """
    downs: dict[str, TensorSource] = {}
    ups: dict[str, TensorSource] = {}
    embeddings: set[str] = set()
    for factor in factors:
        match = _FACTOR.fullmatch(factor.name.removeprefix(PREFIX))
        if match is None or len(factor.shape) != 2 or not factor.dtype.is_floating_point:
            raise ConfigError(f"tensor {factor.name!r} is no factor of plain LoRA on a linear layer or an embedding")
        module, is_down = match["module"], match["side"] == "A"
        side = downs if is_down else ups
        if module in side:
            raise ConfigError(f"{module!r} has several adapters, such as {factor.name!r}: only one can be exported")
        if factor.shape[0 if is_down else 1] != settings.rank:
            raise ConfigError(f"tensor {factor.name!r} is {list(factor.shape)}, but {SETTINGS} has r {settings.rank}")
        side[module] = factor
        if match["embedding"]:
            embeddings.add(module)
    if odd := sorted(downs.keys() ^ ups.keys()):
        raise ConfigError(f"the adapter of {odd[0]!r} has only one of its two factors")
    return Adapter(settings, downs, ups, frozenset(embeddings), whole_modules)
