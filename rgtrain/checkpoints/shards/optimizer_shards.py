"""Read the per-rank shards of an optimizer's state, as torch's optimizers save it with FSDP2."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from rgtrain.checkpoints.shards.rank_file import RankFile
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.checkpoints.shards.tensors import SplitTensor
from rgtrain.checkpoints.shards.unpickling import unpickle_without_data
from rgtrain.errors import ConfigError


class OptimizerRankFile(RankFile):
    """The file with one rank's optimizer state. `values` are the tensors of all parameters, as NUMBER.KEY."""

    def _load_values(self, *, trust: bool) -> dict[str, Tensor]:
        loaded = unpickle_without_data(self.path, trust=trust)
        content: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
        state, groups = content.get("state"), content.get("param_groups")
        if not _is_state(state) or not _are_groups(groups):
            raise ConfigError(
                f"{str(self.path)!r} does not hold the state of a torch optimizer: restore it from a copy, or use "
                "another step"
            )
        self.param_groups: list[dict[str, Any]] = groups
        named = {f"{number}.{key}": value for number, entries in state.items() for key, value in entries.items()}
        self.others = {name: value for name, value in named.items() if not isinstance(value, Tensor)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class StoredState:
    """A tensor of an optimizer's state, merged from all ranks.

    Attributes:
        number: The position of its parameter among those of all parameter groups.
        key: Its name, such as `exp_avg`.
        whole: The whole tensor, whose data stays on disk.
        placements: The division among ranks along each dimension of their mesh; None for a copy on each rank.
    """

    number: int
    key: str
    whole: SplitTensor
    placements: tuple[Placement, ...] | None


class OptimizerShards:
    """The optimizer state in the rank files `paths`.

    Attributes:
        path: The file of rank 0, for messages.
        param_groups: The parameter groups with their options. Each lists its parameters by number.
        others: The values of the state that are not tensors, by number and key.
    """

    def __init__(self, paths: tuple[Path, ...], *, is_verified: bool):
        """Open the files.

        Args:
            paths: The file of each rank.
            is_verified: Whether the files have been compared with their checksums.

        Raises:
            ConfigError: A file is damaged or holds no optimizer state, or the files belong to different steps.
        """
        self._merged = RankFiles(paths, is_verified=is_verified, file_class=OptimizerRankFile)
        first, *others = self._files = [file for file in self._merged.files if isinstance(file, OptimizerRankFile)]
        for file in others:
            if (file.param_groups, file.others) != (first.param_groups, first.others):
                raise ConfigError(
                    f"{str(first.path)!r} and {file.path.name} have different options or steps of the optimizer: "
                    "restore the files of one checkpoint, or use another step"
                )
        self.path = first.path
        self.param_groups = first.param_groups
        self.others: Mapping[tuple[int, str], Any] = {_split(name): value for name, value in first.others.items()}

    def tensors(self) -> Iterator[StoredState]:
        """Yield all tensors of the state. Raise ConfigError if the ranks' shards don't add up to a whole one."""
        for name in self._merged.names:
            value = self._files[0].values[name]
            placements = tuple(value.placements) if isinstance(value, DTensor) else None
            yield StoredState(*_split(name), self._merged.merge(name), placements)


def _split(name: str) -> tuple[int, str]:
    number, _, key = name.partition(".")
    return int(number), key


def _is_state(state: object) -> TypeGuard[dict[int, dict[str, Any]]]:
    return isinstance(state, dict) and all(
        isinstance(number, int) and isinstance(entries, dict) and all(isinstance(key, str) for key in entries)
        for number, entries in state.items()
    )


def _are_groups(groups: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )
