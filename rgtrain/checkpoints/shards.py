"""Tensors split over rank files: read without running the files' code, put together one at a time."""

import logging
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from rgtrain.errors import ConfigError


@dataclass(frozen=True)
class Piece:
    """The block of a tensor that one rank saved, starting at `offset` in the whole."""

    rank_file: Path
    offset: tuple[int, ...]
    block: Tensor

    def region(self, whole: Tensor) -> Tensor:
        """The view of `whole` that this piece fills."""
        return whole[
            tuple(slice(start, start + size) for start, size in zip(self.offset, self.block.shape, strict=True))
        ]

    def equals(self, whole: Tensor) -> bool:
        """Whether `whole` holds this piece's very bits in its place (so NaN equals NaN)."""
        return torch.equal(_bits(self.region(whole)), _bits(self.block))


@dataclass(frozen=True)
class SplitTensor:
    """A tensor of the checkpoint: its pieces cover `shape`, and copies held by several ranks occur once per rank."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    def assemble(self) -> Tensor:
        """The whole tensor, in new memory. Raises ConfigError where ranks hold different copies."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        filled: dict[tuple[int, ...], Piece] = {}
        for piece in self.pieces:
            first = filled.setdefault(piece.offset, piece)
            if first is piece:
                piece.region(whole).copy_(piece.block)
            elif not piece.equals(whole):
                raise ConfigError(
                    f"{first.rank_file.name} and {piece.rank_file.name} hold different copies of tensor {self.name!r}: "
                    "one of the files is damaged or of another step; export another step"
                )
        return whole

    def equals(self, whole: Tensor) -> bool:
        """Whether this tensor is `whole`, bit for bit, without putting it together."""
        same_kind = self.shape == tuple(whole.shape) and self.dtype == whole.dtype
        return same_kind and all(piece.equals(whole) for piece in self.pieces)


def read_shards(rank_files: tuple[Path, ...]) -> dict[str, SplitTensor]:
    """The tensors of a sharded model, by name, in the order of the model. The data stays on disk until it is used.

    Needs neither an accelerator nor a process group. Raises ConfigError where a file can't be read as plain tensors,
    the ranks hold different tensors, or their pieces don't make up a whole.
    """
    states = {path: _load(path) for path in rank_files}
    first, *others = rank_files
    for path in others:
        if odd := sorted(states[first].keys() ^ states[path].keys()):
            holder, lacking = (first, path) if odd[0] in states[first] else (path, first)
            raise ConfigError(
                f"{holder.name} has tensor {odd[0]!r}, {lacking.name} has not: the files are of different models"
            )
    return {name: _join(name, {path: states[path][name] for path in rank_files}) for name in states[first]}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with _quiet_meshes():
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        needs = str(error).split("Unsupported global: GLOBAL ")[1:]
        what = f"needs {needs[0].split()[0]} to be read" if needs else "is damaged"
        raise ConfigError(
            f"{str(path)!r} {what}: only files of plain tensors and DTensors are read, so that no code in them runs. "
            "Save with FSDP2 (actor_rollout_ref.actor.strategy=fsdp2), or with FSDP1 on a device mesh as verl does"
        ) from None
    except Exception as error:  # A damaged file can break its reader anywhere.
        raise ConfigError(
            f"{str(path)!r} can't be read ({_first_line(error)}): copy it again or export another step"
        ) from None
    if not isinstance(state, dict):
        raise ConfigError(f"{str(path)!r} holds a {type(state).__name__}, not a model's named tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"{str(path)!r} holds a {type(value).__name__} under {name!r}, not a tensor")
    return state


@contextmanager
def _quiet_meshes() -> Iterator[None]:
    """torch warns per rank that a mesh was loaded without its process groups, which is the point here."""
    mesh_logger = logging.getLogger("torch.distributed.device_mesh")
    before = mesh_logger.level
    mesh_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        mesh_logger.setLevel(before)


def _join(name: str, values: dict[Path, Tensor]) -> SplitTensor:
    kinds = {(tuple(value.shape), value.dtype, _placements(value)) for value in values.values()}
    if len(kinds) > 1:
        seen = " and ".join(sorted(f"{list(shape)} {dtype} {placed or 'unsharded'}" for shape, dtype, placed in kinds))
        raise ConfigError(f"the rank files disagree on tensor {name!r} ({seen}): they are of different models")
    ((shape, dtype, placements),) = kinds
    if placements is None:
        pieces = [Piece(rank_file=path, offset=(0,) * len(shape), block=value) for path, value in values.items()]
    else:
        pieces = _pieces(name, values, shape, placements)
    covered = sum(math.prod(block.shape) for block in {piece.offset: piece.block for piece in pieces}.values())
    if covered != math.prod(shape):
        raise ConfigError(
            f"the rank files hold {covered} of the {math.prod(shape)} values of tensor {name!r}: "
            "two of them are the same rank's, or one is of another checkpoint"
        )
    return SplitTensor(name=name, shape=shape, dtype=dtype, pieces=tuple(pieces))


def _pieces(name: str, values: dict[Path, DTensor], shape: tuple[int, ...], placements: tuple) -> list[Piece]:
    # The mesh's own layout differs between torch versions and needs a process group; the saved coordinate does not.
    coordinates = {path: value.device_mesh.get_coordinate() for path, value in values.items()}
    mesh_shape = tuple(max(along) + 1 for along in zip(*coordinates.values(), strict=True))
    pieces = []
    for path, value in values.items():
        offset, size = _block_of(name, shape, placements, mesh_shape, coordinates[path])
        with torch.no_grad():
            block = value.to_local()
        if tuple(block.shape) != size:
            raise ConfigError(
                f"{path.name} holds {list(block.shape)} of tensor {name!r} where {list(size)} belongs to its rank: "
                "the file is damaged or of another checkpoint"
            )
        # An empty block starts where another one does, and would stand for it.
        if block.numel():
            pieces.append(Piece(rank_file=path, offset=offset, block=block))
    return pieces


def _placements(value: Tensor) -> tuple | None:
    """How a DTensor lies on its mesh, None for a plain tensor, of which each rank saves the whole."""
    return tuple(value.placements) if isinstance(value, DTensor) else None


def _block_of(
    name: str, shape: tuple[int, ...], placements: tuple, mesh_shape: tuple[int, ...], coordinate: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offset and size of the block at `coordinate`: torch.chunk's rule along each sharded mesh dimension in turn."""
    offset, size = [0] * len(shape), list(shape)
    for placement, num_ranks, index in zip(placements, mesh_shape, coordinate, strict=True):
        if type(placement) is Shard:
            chunk = math.ceil(size[placement.dim] / num_ranks)
            start = min(chunk * index, size[placement.dim])
            offset[placement.dim] += start
            size[placement.dim] = min(chunk, size[placement.dim] - start)
        elif not isinstance(placement, Replicate):
            raise ConfigError(
                f"tensor {name!r} is placed as {placement}, which can't be exported: only Shard and Replicate can"
            )
    return tuple(offset), tuple(size)


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.dtype.itemsize])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
