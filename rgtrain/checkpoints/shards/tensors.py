"""Tensors that an export reads a few rows at a time, independent of their source."""

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

# The allowed dtypes by their names in safetensors files.
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
    """A tensor of the exported model. Rows are along the first dimension, and a scalar has one."""

    @property
    def name(self) -> str:
        """The tensor's name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a copy of rows `start` to `stop`. Raise ConfigError if their file is damaged."""
        ...


def num_rows(source: TensorSource) -> int:
    """Return the number of rows, 1 for a scalar."""
    return source.shape[0] if source.shape else 1


def num_values(source: TensorSource) -> int:
    """Return the number of values."""
    return math.prod(source.shape)


def row_ranges(source: TensorSource, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of consecutive blocks of about BLOCK_BYTES that make up rows `start` to `stop`.

    Args:
        source: The tensor.
        start: The first row.
        stop: The row after the last one.

    Yields:
        The first row of a block and the row after its last one.
    """
    row_bytes = max(1, math.prod(source.shape[1:]) * source.dtype.itemsize)
    step = max(1, BLOCK_BYTES // row_bytes)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def read_blocks(source: TensorSource) -> Iterator[Tensor]:
    """Yield all rows of `source` in blocks of about BLOCK_BYTES."""
    # A tensor without values can have any number of rows.
    for start, stop in row_ranges(source, 0, num_rows(source) if num_values(source) else 0):
        yield source.rows(start, stop)


def read_all(source: TensorSource) -> Tensor:
    """Read all of `source` into memory."""
    return source.rows(0, num_rows(source))


def same_values(one: TensorSource, other: TensorSource) -> bool:
    """Return whether both tensors are equal bit for bit, so that NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(same_bits(a, b) for a, b in zip(read_blocks(one), read_blocks(other), strict=True))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of the same dtype and shape are equal bit for bit."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers[one.dtype.itemsize]
    return torch.equal(one.view(kind), other.view(kind))


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block.

    Memory bandwidth limits the speed of an export. On busy cores, several threads that wait for each other are slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Piece:
    """The part of a tensor that one file holds. It starts at `offset` in the whole."""

    file: MappedFile
    region: FileRegion
    offset: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of this part."""
        return self.region.shape

    def columns_of(self, whole_rows: Tensor) -> Tensor:
        """Return a view of this piece's columns in rows of the whole tensor."""
        for dim, (start, size) in enumerate(zip(self.offset[1:], self.shape[1:], strict=True), start=1):
            whole_rows = whole_rows.narrow(dim, start, size)
        return whole_rows


@dataclass(frozen=True)
class SplitTensor:
    """A tensor whose pieces are in one or more files. Pieces at the same offset are copies by several ranks."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a copy of rows `start` to `stop`. Raise ConfigError if a file is damaged or copies differ."""
        block = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        filled: dict[tuple[int, ...], Piece] = {}
        for piece in self.pieces:
            low, high = max(start, piece.offset[0]), min(stop, piece.offset[0] + piece.shape[0])
            if low >= high:
                continue
            columns = piece.columns_of(block[low - start : high - start])
            first = filled.setdefault(piece.offset, piece)
            with piece.file.rows(self.name, piece.region, low - piece.offset[0], high - piece.offset[0]) as values:
                if first is piece:
                    columns.copy_(values)
                elif not same_bits(columns, values):
                    raise self._differing(first.file.path, piece.file.path)
        return block.reshape(self.shape) if not self.shape else block

    def is_stored_as(self, other: TensorSource) -> bool:
        """Return whether both tensors have the same locations in the same files, as tied tensors do."""
        return isinstance(other, SplitTensor) and self.pieces == other.pieces

    def _differing(self, one: Path, other: Path) -> ConfigError:
        return ConfigError(
            f"{one.name} and {other.name} have different copies of tensor {self.name!r}: copy the files again, or "
            "use another step"
        )
