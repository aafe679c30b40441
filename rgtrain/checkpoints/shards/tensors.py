"""What an export writes: tensors that are produced a few rows at a time, wherever their values come from."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rgtrain.checkpoints.shards.mapped_file import BLOCK_BYTES, FileRegion, MappedFile
from rgtrain.errors import ConfigError

# The types of values that a tensor may have, under their names in safetensors files.
DTYPES_BY_NAME = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorSource(Protocol):
    """A tensor of the exported model. Its rows are those of its first dimension; a scalar has one."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` in memory of their own. Raises ConfigError where their file is damaged."""
        ...


def num_rows(source: TensorSource) -> int:
    return source.shape[0] if source.shape else 1


def num_values(source: TensorSource) -> int:
    return math.prod(source.shape)


def blocks(source: TensorSource) -> Iterator[Tensor]:
    """The whole of `source` in turn, as blocks of rows of about BLOCK_BYTES."""
    # A tensor without values may have any number of rows.
    total = num_rows(source) if num_values(source) else 0
    row_bytes = max(1, math.prod(source.shape[1:]) * source.dtype.itemsize)
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, total, step):
        yield source.rows(start, min(start + step, total))


def whole(source: TensorSource) -> Tensor:
    """All of `source` in memory."""
    return source.rows(0, num_rows(source))


def same_values(one: TensorSource, other: TensorSource) -> bool:
    """Whether both are the same tensor, bit for bit (so NaN equals NaN)."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(same_bits(a, b) for a, b in zip(blocks(one), blocks(other), strict=True))


def same_bits(one: Tensor, other: Tensor) -> bool:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers[one.dtype.itemsize]
    return torch.equal(one.view(kind), other.view(kind))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Memory sets the pace here; on busy cores several threads that wait for each other are many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Piece:
    """The block of a tensor that one file holds, starting at `offset` in the whole."""

    file: MappedFile
    place: FileRegion
    offset: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    def region(self, whole_rows: Tensor) -> Tensor:
        """Where this piece's columns lie in some rows of the whole."""
        for dim, (start, size) in enumerate(zip(self.offset[1:], self.shape[1:], strict=True), start=1):
            whole_rows = whole_rows.narrow(dim, start, size)
        return whole_rows


@dataclass(frozen=True)
class SplitTensor:
    """A tensor of the checkpoint: its pieces cover `shape`, and copies held by several ranks occur once per rank."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        block = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        filled: dict[tuple[int, ...], Piece] = {}
        for piece in self.pieces:
            low, high = max(start, piece.offset[0]), min(stop, piece.offset[0] + piece.shape[0])
            if low >= high:
                continue
            region = piece.region(block[low - start : high - start])
            first = filled.setdefault(piece.offset, piece)
            with piece.file.rows(self.name, piece.place, low - piece.offset[0], high - piece.offset[0]) as values:
                if first is piece:
                    region.copy_(values)
                elif not same_bits(region, values):
                    raise self._differing(first.file.path, piece.file.path)
        return block.reshape(self.shape) if not self.shape else block

    def is_stored_as(self, other: TensorSource) -> bool:
        """Whether both lie in the same places of the same files, as tied tensors do."""
        return isinstance(other, SplitTensor) and self.pieces == other.pieces

    def _differing(self, one: Path, other: Path) -> ConfigError:
        return ConfigError(
            f"{one.name} and {other.name} hold different copies of tensor {self.name!r}: "
            "one of the files is damaged or of another step; export another step"
        )
