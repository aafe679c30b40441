"""Read tensors from a memory-mapped file and release pages after use, so that at most one block is resident."""

import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rgtrain.checkpoints.untrusted_files import open_regular

# Small enough for a processor cache, because several operations process each block in turn.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class FileRegion:
    """The location of a tensor in a file: a view of the `num_bytes` that start at byte `start`.

    `stride` and `storage_offset` count values, as in torch.
    """

    start: int
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int = 0


class MappedFile:
    """A read-only memory map of a file with tensors. The file must not change while it is in use."""

    def __init__(self, path: Path):
        """Map the file. Raise ConfigError if it is not a regular file in its folder, ValueError if it is empty."""
        self.path = path
        with open_regular(path) as file:
            # A read-only map can be larger than the memory.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return len(self._map)

    def check(self, name: str, region: FileRegion) -> None:
        """Raise ConfigError if the tensor's data is damaged. Without checksums in the format, accept everything."""

    @contextmanager
    def rows(self, name: str, region: FileRegion, start: int, stop: int) -> Iterator[Tensor]:
        """Check the tensor at `region`, and yield its rows `start` to `stop`, which are valid inside the block."""
        self.check(name, region)
        yield self._tensor(region)[start:stop]
        first = region.start + (region.storage_offset + start * region.stride[0]) * region.dtype.itemsize
        self._release(first, first + (stop - start) * region.stride[0] * region.dtype.itemsize)

    def _tensor(self, region: FileRegion) -> Tensor:
        count = region.num_bytes // region.dtype.itemsize
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self._map, dtype=region.dtype, count=count, offset=region.start)
        return flat.as_strided(region.shape, region.stride, region.storage_offset)

    def _release(self, start: int, stop: int) -> None:
        first = start - start % mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, first, min(stop, len(self._map)) - first)
