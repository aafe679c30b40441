"""LoRA adapters in a checkpoint, which use PEFT's names: merge them into the weights, or extract them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rgtrain.checkpoints.shards.tensors import TensorSource, read_all
from rgtrain.checkpoints.untrusted_files import quoted, read_json_object
from rgtrain.errors import ConfigError

PREFIX = "base_model.model."
# verl's RL trainer writes this file to the folder of the rank files, its SFT trainer to the parent folder.
SETTINGS = "lora_train_meta.json"
_MAX_SETTINGS_BYTES = 64 * 1024
_MAX_RANK = _MAX_ALPHA = 2**20
_TASK_TYPE = re.compile(r"[A-Z0-9_]{1,40}", re.ASCII)
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])\.[^.]+?(?:\.weight)?")


@dataclass(frozen=True)
class LoraSettings:
    """The settings that determine an adapter's scale."""

    rank: int
    alpha: float
    task_type: str

    @property
    def scale(self) -> float:
        """The factor `alpha / rank` of the adapter's change to a weight."""
        return self.alpha / self.rank


def is_adapter_tensor(name: str) -> bool:
    """Return whether the checkpoint's tensor `name` belongs to an adapter."""
    return "lora_" in name


def unwrapped_name(name: str) -> str:
    """Return a tensor's name in the model without the wrappers of PEFT and trl."""
    name = name.removeprefix(PREFIX).removeprefix("pretrained_model.")
    return re.sub(r"\.base_layer\.|\.modules_to_save\.[^.]+\.", ".", name)


def read_settings(folder: Path) -> LoraSettings:
    """Read the settings that verl saved with the checkpoint in `folder`. Raise ConfigError if there are none."""
    path = next((path for path in (folder / SETTINGS, folder.parent / SETTINGS) if path.exists()), None)
    example = '{"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM"}'
    if path is None:
        raise ConfigError(
            f"{str(folder)!r} holds a LoRA adapter, but no {SETTINGS} with its scale: write one like {example} with "
            "the run's actor_rollout_ref.model.lora_rank and lora_alpha"
        )
    settings = read_json_object(path, max_bytes=_MAX_SETTINGS_BYTES)
    rank, alpha, task_type = settings.get("r"), settings.get("lora_alpha"), settings.get("task_type", "CAUSAL_LM")
    if (
        type(rank) is not int
        or type(alpha) is bool
        or not isinstance(alpha, int | float)
        or not isinstance(task_type, str)
    ):
        raise ConfigError(f"{str(path)!r} holds no valid LoRA settings: write a file like {example}")
    if not 1 <= rank <= _MAX_RANK or not 0 < abs(alpha) <= _MAX_ALPHA or not _TASK_TYPE.fullmatch(task_type):
        raise ConfigError(
            f"{str(path)!r} has r {str(rank)[:30]}, lora_alpha {str(alpha)[:30]} and task_type {quoted(task_type)}: "
            f"r must be 1 to {_MAX_RANK}, lora_alpha at most {_MAX_ALPHA} and not 0, and task_type one of PEFT's types"
        )
    return LoraSettings(rank, float(alpha), task_type)


@dataclass(frozen=True)
class MergedTensor:
    """A weight with its adapter merged: base + scale * up @ down, in float32 or better and rounded once.

    The product is transposed for embeddings. The formula is from section 4.1 of https://arxiv.org/abs/2106.09685.
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
        added = down[:, start:stop].T @ up.T if self.transposed else up[start:stop] @ down
        base = self.base.rows(start, stop)
        return (base.to(added.dtype) + self.scale * added).to(base.dtype)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        precision = torch.promote_types(self.dtype, torch.float32)
        return read_all(self.down).to(precision), read_all(self.up).to(precision)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as saved.

    Attributes:
        settings: Its rank, alpha and task type.
        downs: The factors A (rank x inputs) by the name of the module that they change.
        ups: The factors B (outputs x rank) by the name of the module.
        embeddings: The names of changed modules that are embeddings.
        fully_trained: The names of tensors that were trained in full, without factors.
    """

    settings: LoraSettings
    downs: Mapping[str, TensorSource]
    ups: Mapping[str, TensorSource]
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
        last_names = {module.rpartition(".")[2] for module in self.downs}
        modules = {name.removesuffix(".weight") for name in shapes}
        matching = {module for module in modules if module.rpartition(".")[2] in last_names}
        return sorted(last_names) if matching == self.downs.keys() else sorted(self.downs)

    def merge_into(self, tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        """Merge the adapter into the tensors of its base model.

        Args:
            tensors: The base model's tensors by unwrapped name.

        Returns:
            The same tensors with changed weights replaced by merged ones.

        Raises:
            ConfigError: A changed weight is missing, or its shape doesn't match its factors.
        """
        changed = dict(tensors)
        for module, down in self.downs.items():
            up, name = self.ups[module], f"{module}.weight"
            if (base := tensors.get(name)) is None:
                raise ConfigError(
                    f"the adapter changes {name!r}, which is neither in the checkpoint nor in the config's folder: "
                    "give HF_CONFIG_DIR with the base model's weights, or export only the adapter with --lora adapter"
                )
            transposed = module in self.embeddings
            size = (up.shape[0], down.shape[1])
            if base.shape != (size[::-1] if transposed else size):
                raise ConfigError(
                    f"the adapter of {name!r} has shape {list(size)} but the tensor {list(base.shape)}: use "
                    "--lora adapter, because only adapters of linear layers and embeddings can be merged"
                )
            changed[name] = MergedTensor(base, down, up, self.settings.scale, transposed)
        return changed


def build_adapter(
    factors: Iterable[TensorSource], settings: LoraSettings, *, fully_trained: tuple[str, ...]
) -> Adapter:
    """Group the tensors of an adapter by module.

    Args:
        factors: All tensors of the checkpoint for which `is_adapter_tensor` is true.
        settings: The adapter's settings.
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
        if factor.shape[0 if is_down else 1] != settings.rank:
            raise ConfigError(
                f"tensor {factor.name!r} has shape {list(factor.shape)}, but {SETTINGS} has r {settings.rank}: correct "
                "that file"
            )
        side[module] = factor
        if match["embedding"]:
            embeddings.add(module)
    if odd := sorted(downs.keys() ^ ups.keys()):
        raise ConfigError(f"the adapter of {odd[0]!r} has only one of its two factors: export another step")
    return Adapter(settings, downs, ups, frozenset(embeddings), fully_trained)
