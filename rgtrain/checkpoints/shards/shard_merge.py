"""Determine each shard's position in the whole tensor, for DTensors, FSDP1's ShardedTensors and plain tensors."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from rgtrain.checkpoints.shards.rank_file import RankFile
from rgtrain.checkpoints.shards.tensors import Piece, SplitTensor
from rgtrain.checkpoints.standstill import ExportProgress
from rgtrain.checkpoints.untrusted_files import first_line, quoted
from rgtrain.errors import ConfigError

Shape = tuple[int, ...]
# Errors from unchecked meshes, coordinates and placements in a file, which torch checks only when it uses them.
_PLACEMENT_ERRORS = (ValueError, TypeError, IndexError, AttributeError, RuntimeError, ArithmeticError)


class RankFiles:
    """The open rank files of a model or an optimizer, and their tensor names. Tensors are merged on request."""

    def __init__(
        self,
        paths: tuple[Path, ...],
        *,
        trust: bool = False,
        is_verified: bool = False,
        file_class: type[RankFile] = RankFile,
        progress: ExportProgress | None = None,
    ):
        """Open the files.

        Args:
            paths: The file of each rank.
            trust: Whether code in the files may run.
            is_verified: Whether the files have been compared with their checksums.
            file_class: The class of a file, which depends on its content.
            progress: Updated with each file.

        Raises:
            ConfigError: A file can't be read as plain tensors, or the files have different tensors.
        """
        self.files = []
        for path in paths:
            if progress is not None:
                progress.moved(str(path))
            self.files.append(file_class(path, trust=trust, is_verified=is_verified))
        first, *others = self.files
        self.names = tuple(first.values)
        self.num_bytes = sum(file.num_bytes for file in self.files)
        for file in self.files:
            file.check_sizes(max_bytes=self.num_bytes)
        for file in others:
            if odd := sorted(first.values.keys() ^ file.values.keys()):
                holder, lacking = (first, file) if odd[0] in first.values else (file, first)
                raise ConfigError(
                    f"{holder.path.name} has tensor {quoted(odd[0])}, but {lacking.path.name} does not: restore the "
                    "files of one model"
                )

    def shape_on_rank_zero(self, name: str) -> Shape:
        """Return the tensor's shape in rank 0's file, which is the full shape except for split plain tensors."""
        return tuple(self.files[0].values[name].shape)

    def merge(self, name: str, *, expected: Shape | None = None) -> SplitTensor:
        """Merge the ranks' shards of a tensor, and leave the data on disk.

        Args:
            name: The name of the tensor.
            expected: The full shape according to the config, which is needed for plain tensors only. They have no
                placement, so they count as parts if they add up to this shape along one dimension, else as copies.

        Returns:
            The whole tensor.

        Raises:
            ConfigError: The shards don't add up to a whole tensor.
        """
        try:
            return self._merge(name, expected)
        except ConfigError:
            raise
        except _PLACEMENT_ERRORS as error:
            raise ConfigError(
                f"the shards of tensor {name!r} don't add up to a whole ({first_line(error)}): copy the rank files "
                "again, or use another step"
            ) from error

    def _merge(self, name: str, expected: Shape | None) -> SplitTensor:
        values = {file: file.values[name] for file in self.files}
        kinds = {_common_properties(value) for value in values.values()}
        if len(kinds) > 1:
            seen = " and ".join(sorted(" ".join(map(str, kind)) for kind in kinds))
            raise ConfigError(f"the rank files disagree on tensor {name!r} ({seen}): restore the files of one model")
        first = next(iter(values.values()))
        # All values have the same kind.
        if dtensors := {file: value for file, value in values.items() if isinstance(value, DTensor)}:
            shape, pieces = tuple(first.shape), _dtensor_pieces(name, dtensors)
        elif sharded := {file: value for file, value in values.items() if isinstance(value, ShardedTensor)}:
            shape = tuple(first.size())
            pieces = [
                _piece(file, shard.tensor, tuple(shard.metadata.shard_offsets))
                for file, value in sharded.items()
                for shard in value.local_shards()
            ]
            _check_disjoint(name, shape, pieces)
        else:
            shape, pieces = _plain_tensor_pieces(name, values, expected)
        _check_covered(name, shape, pieces)
        # An empty shard has the same offset as the next one and would hide it.
        kept = tuple(piece for piece in pieces if math.prod(piece.shape))
        return SplitTensor(name=name, shape=shape, dtype=first.dtype, pieces=kept)


def _common_properties(value: Tensor) -> tuple[object, ...]:
    """Return the properties of a tensor on which all ranks must agree."""
    if isinstance(value, DTensor):
        return ("DTensor", str(list(value.shape)), value.dtype, value.placements)
    if isinstance(value, ShardedTensor):
        return ("ShardedTensor", str(list(value.size())), value.dtype)
    return ("plain", value.dtype, f"of {value.dim()} dimensions")


def _dtensor_pieces(name: str, values: Mapping[RankFile, DTensor]) -> list[Piece]:
    # Use the saved coordinate, because the mesh's layout depends on the torch version and needs a process group.
    coordinates: dict[RankFile, Shape] = {}
    for file, value in values.items():
        if (coordinate := value.device_mesh.get_coordinate()) is None:
            raise ValueError(f"the rank of {file.path.name} is not part of its mesh")
        coordinates[file] = tuple(coordinate)
    mesh_shape = tuple(max(along) + 1 for along in zip(*coordinates.values(), strict=True))
    pieces = []
    for file, value in values.items():
        offset, size = block_at(name, value, value.placements, mesh_shape, coordinates[file])
        with torch.no_grad():
            local = value.to_local()
        if tuple(local.shape) != size:
            raise ConfigError(
                f"{file.path.name} has a shard of shape {list(local.shape)} of tensor {name!r}, but the shard of its "
                f"rank has {list(size)}: copy the file again, or use another step"
            )
        pieces.append(_piece(file, local, offset))
    return pieces


def _plain_tensor_pieces(
    name: str, values: Mapping[RankFile, Tensor], expected: Shape | None
) -> tuple[Shape, list[Piece]]:
    shapes = [tuple(value.shape) for value in values.values()]
    dim = None if expected is None or expected in shapes else _split_dimension(shapes, expected)
    if dim is None and len(set(shapes)) > 1:
        raise ConfigError(
            f"the rank files have shapes {' and '.join(str(list(shape)) for shape in dict.fromkeys(shapes))} of tensor "
            f"{name!r}, which are neither copies nor parts of {list(expected or ())}: restore the files of one model"
        )
    whole, start, pieces = list(shapes[0]), 0, []
    for file, value in values.items():
        offset = [0] * max(1, value.dim())
        if dim is not None:
            offset[dim], start = start, start + value.shape[dim]
        pieces.append(_piece(file, value, tuple(offset)))
    if dim is not None:
        # The sum of all parts.
        whole[dim] = start
    return tuple(whole), pieces


def _split_dimension(shapes: list[Shape], expected: Shape) -> int | None:
    """Return the dimension along which tensors of `shapes` can be concatenated to the `expected` shape, if any."""
    for dim in range(len(expected)):
        rest = {(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}
        same_rest = rest == {(*expected[:dim], *expected[dim + 1 :])}
        if same_rest and sum(shape[dim] for shape in shapes) == expected[dim]:
            return dim
    return None


def block_at(
    name: str, whole: Tensor, placements: Sequence[Placement], mesh_shape: Shape, coordinate: Shape
) -> tuple[Shape, Shape]:
    """Return the position and shape of the shard at `coordinate`, by torch.chunk's rule along each mesh dimension.

    Args:
        name: The tensor's name, for messages.
        whole: A tensor of the whole shape.
        placements: The division along each dimension of the mesh.
        mesh_shape: The number of ranks along each dimension of the mesh.
        coordinate: The position of the rank along each dimension of the mesh.

    Returns:
        The position of the shard's first value in the whole tensor, and the shard's shape.

    Raises:
        ConfigError: A placement is neither Shard nor Replicate.
    """
    offset, size = [0] * whole.dim(), list(whole.shape)
    for placement, num_ranks, index in zip(placements, mesh_shape, coordinate, strict=True):
        if type(placement) is Shard:
            chunk = math.ceil(size[placement.dim] / num_ranks)
            start = min(chunk * index, size[placement.dim])
            offset[placement.dim] += start
            size[placement.dim] = min(chunk, size[placement.dim] - start)
        elif not isinstance(placement, Replicate):
            raise ConfigError(
                f"tensor {name!r} has the placement {placement}, but only Shard and Replicate can be read"
            )
    return tuple(offset), tuple(size)


def _piece(file: RankFile, local: Tensor, offset: Shape) -> Piece:
    return Piece(file=file, region=file.locate(local), offset=offset or (0,))


def _check_disjoint(name: str, shape: Shape, pieces: list[Piece]) -> None:
    """Refuse pieces that overlap without being copies or exceed the tensor. Offsets in a file are unchecked."""
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
                f"the shard of tensor {name!r} in {piece.file.path.name} overlaps another one or exceeds the tensor: "
                "copy the file again, or use another step"
            )


def _check_covered(name: str, shape: Shape, pieces: list[Piece]) -> None:
    covered = sum({piece.offset: math.prod(piece.shape) for piece in pieces if math.prod(piece.shape)}.values())
    if covered != math.prod(shape):
        raise ConfigError(
            f"the rank files have {covered} of the {math.prod(shape)} values of tensor {name!r}: check that no file "
            "was copied under another rank's name or from another checkpoint"
        )
