"""Where each rank's block belongs in the whole tensor: DTensors, FSDP1's ShardedTensors, and plain tensors."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from rgtrain.checkpoints.shards.rank_file import RankFile
from rgtrain.checkpoints.shards.tensors import Piece, SplitTensor
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.checkpoints.untrusted_files import first_line, quoted
from rgtrain.errors import ConfigError

Shape = tuple[int, ...]
# A file gives the mesh, the coordinate and the placements of a DTensor, which torch checks only if they are used.
_PLACEMENT_ERRORS = (ValueError, TypeError, IndexError, AttributeError, RuntimeError, ArithmeticError)


class RankFiles:
    """The rank files of one model, opened: the names of its tensors, of which each is joined when it is asked for."""

    def __init__(self, paths: tuple[Path, ...], *, trust: bool = False, progress: ExportProgress | None = None):
        """Open the files and note each in `progress`.

        Raises ConfigError if a file can't be read as plain tensors, or the files hold different tensors.
        """
        self._files = []
        for path in paths:
            if progress is not None:
                progress.moved(str(path))
            self._files.append(RankFile(path, trust=trust))
        first, *others = self._files
        self.names = tuple(first.values)
        self.num_bytes = sum(file.num_bytes for file in self._files)
        for file in self._files:
            file.check_sizes(most_bytes=self.num_bytes)
        for file in others:
            if odd := sorted(first.values.keys() ^ file.values.keys()):
                holder, lacking = (first, file) if odd[0] in first.values else (file, first)
                raise ConfigError(
                    f"{holder.path.name} has tensor {quoted(odd[0])}, {lacking.path.name} has not: "
                    "the files are of different models"
                )

    def shape_on_rank_zero(self, name: str) -> Shape:
        """The tensor's shape as rank 0 saved it: the whole's, except of a plain tensor that is split."""
        return tuple(self._files[0].values[name].shape)

    def join(self, name: str, *, expected: Shape | None = None) -> SplitTensor:
        """The tensor called `name`, its data left on disk.

        Plain tensors carry no placement: they are taken as copies of a whole unless, put together along one dimension,
        they are of the `expected` shape. Raises ConfigError where the ranks' pieces don't make up a whole.
        """
        try:
            return self._joined(name, expected)
        except ConfigError:
            raise
        except _PLACEMENT_ERRORS as error:
            raise ConfigError(
                f"the rank files place tensor {name!r} in a way that makes no whole ({first_line(error)}): "
                "they are damaged; copy them again, or export another step"
            ) from error

    def _joined(self, name: str, expected: Shape | None) -> SplitTensor:
        values = {file: file.values[name] for file in self._files}
        kinds = {_kind(value) for value in values.values()}
        if len(kinds) > 1:
            seen = " and ".join(sorted(" ".join(map(str, kind)) for kind in kinds))
            raise ConfigError(f"the rank files disagree on tensor {name!r} ({seen}): they are of different models")
        first = next(iter(values.values()))
        # All values are of one kind.
        if dtensors := {file: value for file, value in values.items() if isinstance(value, DTensor)}:
            shape, pieces = tuple(first.shape), _of_dtensors(name, dtensors)
        elif sharded := {file: value for file, value in values.items() if isinstance(value, ShardedTensor)}:
            shape = tuple(first.size())
            pieces = [
                _piece(file, shard.tensor, tuple(shard.metadata.shard_offsets))
                for file, value in sharded.items()
                for shard in value.local_shards()
            ]
            _check_disjoint(name, shape, pieces)
        else:
            shape, pieces = _of_plain_tensors(name, values, expected)
        _check_covered(name, shape, pieces)
        # An empty block starts where another one does, and would stand for it.
        kept = tuple(piece for piece in pieces if math.prod(piece.shape))
        return SplitTensor(name=name, shape=shape, dtype=first.dtype, pieces=kept)


def _kind(value: Tensor) -> tuple[object, ...]:
    """What all ranks must agree on."""
    if isinstance(value, DTensor):
        return ("DTensor", str(list(value.shape)), value.dtype, value.placements)
    if isinstance(value, ShardedTensor):
        return ("ShardedTensor", str(list(value.size())), value.dtype)
    return ("plain", value.dtype, f"of {value.dim()} dimensions")


def _of_dtensors(name: str, values: Mapping[RankFile, DTensor]) -> list[Piece]:
    # The mesh's own layout differs between torch versions and needs a process group; the saved coordinate does not.
    coordinates: dict[RankFile, Shape] = {}
    for file, value in values.items():
        if (coordinate := value.device_mesh.get_coordinate()) is None:
            raise ValueError(f"the rank of {file.path.name} is not part of its mesh")
        coordinates[file] = tuple(coordinate)
    mesh_shape = tuple(max(along) + 1 for along in zip(*coordinates.values(), strict=True))
    pieces = []
    for file, value in values.items():
        offset, size = _block_of(name, value, mesh_shape, coordinates[file])
        with torch.no_grad():
            local = value.to_local()
        if tuple(local.shape) != size:
            raise ConfigError(
                f"{file.path.name} holds {list(local.shape)} of tensor {name!r} where {list(size)} belongs to its "
                "rank: the file is damaged or of another checkpoint"
            )
        pieces.append(_piece(file, local, offset))
    return pieces


def _of_plain_tensors(
    name: str, values: Mapping[RankFile, Tensor], expected: Shape | None
) -> tuple[Shape, list[Piece]]:
    shapes = [tuple(value.shape) for value in values.values()]
    dim = None if expected is None or expected in shapes else _split_dimension(shapes, expected)
    if dim is None and len(set(shapes)) > 1:
        raise ConfigError(
            f"the rank files hold {' and '.join(str(list(shape)) for shape in dict.fromkeys(shapes))} of tensor "
            f"{name!r}, which are neither copies nor parts of {list(expected or ())}: the files are of different models"
        )
    whole, start, pieces = list(shapes[0]), 0, []
    for file, value in values.items():
        offset = [0] * max(1, value.dim())
        if dim is not None:
            offset[dim], start = start, start + value.shape[dim]
        pieces.append(_piece(file, value, tuple(offset)))
    if dim is not None:
        # The last part ends where the whole does.
        whole[dim] = start
    return tuple(whole), pieces


def _split_dimension(shapes: list[Shape], expected: Shape) -> int | None:
    """The dimension along which tensors of `shapes`, one after the other, make up one of the `expected` shape."""
    for dim in range(len(expected)):
        rest = {(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}
        same_rest = rest == {(*expected[:dim], *expected[dim + 1 :])}
        if same_rest and sum(shape[dim] for shape in shapes) == expected[dim]:
            return dim
    return None


def _block_of(name: str, value: DTensor, mesh_shape: Shape, coordinate: Shape) -> tuple[Shape, Shape]:
    """Offset and size of the block at `coordinate`: torch.chunk's rule along each sharded mesh dimension in turn."""
    offset, size = [0] * value.dim(), list(value.shape)
    for placement, num_ranks, index in zip(value.placements, mesh_shape, coordinate, strict=True):
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


def _piece(file: RankFile, local: Tensor, offset: Shape) -> Piece:
    return Piece(file=file, place=file.place(local), offset=offset or (0,))


def _check_disjoint(name: str, shape: Shape, pieces: list[Piece]) -> None:
    """Refuse pieces that overlap without being copies, or reach over the edge: a file may give any offset."""
    distinct = sorted({piece.offset: piece for piece in pieces if math.prod(piece.shape)}.items())
    for index, (offset, piece) in enumerate(distinct):
        ends = [start + size for start, size in zip(offset, piece.shape, strict=True)]
        over = any(start < 0 or end > size for start, end, size in zip(offset, ends, shape or (1,), strict=True))
        for other_offset, other in distinct[index + 1 :]:
            if over or other_offset[0] >= ends[0]:
                break
            over = all(
                start < other_start + other_size and other_start < end
                for start, end, other_start, other_size in zip(offset, ends, other_offset, other.shape, strict=True)
            )
        if over:
            raise ConfigError(
                f"the part of tensor {name!r} in {piece.file.path.name} overlaps another one or lies outside of the "
                "tensor: the file is damaged; copy it again, or export another step"
            )


def _check_covered(name: str, shape: Shape, pieces: list[Piece]) -> None:
    covered = sum({piece.offset: math.prod(piece.shape) for piece in pieces if math.prod(piece.shape)}.values())
    if covered != math.prod(shape):
        raise ConfigError(
            f"the rank files hold {covered} of the {math.prod(shape)} values of tensor {name!r}: "
            "two of them are the same rank's, or one is of another checkpoint"
        )
