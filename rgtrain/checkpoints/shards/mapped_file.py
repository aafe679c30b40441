"""A file of tensors, mapped into memory; its pages are handed back once copied, so no more than a block is resident."""

import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rgtrain.checkpoints.untrusted_files import open_regular

# Small enough that what is done to a block in turn finds it in a processor's cache.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class FileRegion:
    """Where a tensor lies in a file: a view, in units of values, of the `num_bytes` that start at byte `start`."""

    start: int
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int = 0


class MappedFile:
    """Tensors of a file by their place. The file must not change meanwhile."""

    def __init__(self, path: Path):
        """Raises ConfigError if `path` is no regular file in its folder, and ValueError if it is empty."""
        self.path = path
        with open_regular(path) as file:
            # Not to be written, so that a file larger than the memory can be mapped.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return len(self._map)

    def check(self, name: str, place: FileRegion) -> None:
        """Raises ConfigError where the data of the tensor called `name` is damaged, as far as the format tells."""

    @contextmanager
    def rows(self, name: str, place: FileRegion, start: int, stop: int) -> Iterator[Tensor]:
        """Rows `start` to `stop` of the tensor at `place`, checked; they may be read until the block ends."""
        self.check(name, place)
        yield self._tensor(place)[start:stop]
        first = place.start + (place.storage_offset + start * place.stride[0]) * place.dtype.itemsize
        self._release(first, first + (stop - start) * place.stride[0] * place.dtype.itemsize)

    def _tensor(self, place: FileRegion) -> Tensor:
        count = place.num_bytes // place.dtype.itemsize
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self._map, dtype=place.dtype, count=count, offset=place.start)
        return flat.as_strided(place.shape, place.stride, place.storage_offset)

    def _release(self, start: int, stop: int) -> None:
        first = start - start % mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, first, min(stop, len(self._map)) - first)
