"""What one rank saved: a zip file of records, one per storage, each checked against its checksum on first use."""

import logging
import math
import sys
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor

from rgtrain.checkpoints.shards.mapped_file import BLOCK_BYTES, FileRegion, MappedFile
from rgtrain.checkpoints.shards.tensors import DTYPES_BY_NAME
from rgtrain.checkpoints.shards.unpickling import check_tuples, load_structure, named_damage
from rgtrain.checkpoints.untrusted_files import open_regular, quoted
from rgtrain.errors import ConfigError

# In a zip file's entry: where the lengths of its name and of its extra field stand, and where its fixed part ends.
_LENGTHS, _FIXED_BYTES = 26, 30

# The structure of one tensor takes a few hundred bytes of data.pkl; other records are a word each.
_STRUCTURE_BYTES = 64 * 1024
_STRUCTURE_BYTES_PER_TENSOR = 4 * 1024
_MOST_STRUCTURE_BYTES = _MOST_READ_BYTES = 24 * 2**20
# torch's own limit for views.
_MOST_DIMENSIONS = 64
_MOST_NAME_CHARACTERS = 512

logger = logging.getLogger(__name__)


class RankFile(MappedFile):
    """A file that torch.save wrote: `values` are its tensors by name, without their data (see load_structure)."""

    def __init__(self, path: Path, *, trust: bool = False):
        """Raises ConfigError if the file is damaged, or (unless `trust`) can't be read without running its code."""
        with named_damage(path):
            super().__init__(path)
            # The table of contents is read whole, at the length that the file gives for it.
            with open_regular(path) as file, zipfile.ZipFile(_BoundedReads(file)) as archive:
                entries = archive.infolist()
                # torch writes zeros if checksums are switched off.
                self._has_checksums = any(entry.CRC for entry in entries)
                self._check_entries(entries)
                self._check_structure(archive)
            self._records = {self._data_start(entry): entry for entry in entries}
            if any(start + entry.file_size > self.num_bytes for start, entry in self._records.items()):
                raise ValueError("a record ends after the file")
            self._check_description()
        self._sound: set[int] = set()
        self.values = load_structure(path, trust=trust)
        for name, tensor in self.values.items():
            if reason := _why_not_plain(name, tensor):
                raise ConfigError(f"{str(path)!r} has tensor {quoted(name)}, {reason}: it is no model's rank file")

    def check_sizes(self, *, most_bytes: int) -> None:
        """Raises ConfigError for a tensor that is larger than `most_bytes`, those of all rank files together."""
        for name, tensor in self.values.items():
            shape = tuple(tensor.size())
            # A tensor without values can still have a dimension that is too large to count.
            if max(math.prod(shape) * tensor.dtype.itemsize, *shape, 0) > most_bytes:
                raise ConfigError(
                    f"{str(self.path)!r} has tensor {name!r} of {list(shape)}, but all rank files together hold "
                    f"{most_bytes} bytes: copy them again, or export another step"
                )

    def place(self, local: Tensor) -> FileRegion:
        """Where the data of `local`, one of the `values` or a rank's part of one, lies. A scalar is a row of one."""
        start = local.untyped_storage()._checkpoint_offset
        if start is None:
            raise ValueError(f"a tensor has no data in {self.path.name}")
        num_bytes = self._records[start].file_size if start in self._records else 0
        shape, stride = (tuple(local.shape), tuple(local.stride())) if local.dim() else ((1,), (1,))
        return FileRegion(start, num_bytes, local.dtype, shape, stride, int(local.storage_offset()))

    def check(self, name: str, place: FileRegion) -> None:
        entry = self._records.get(place.start)
        if entry is None or self._needed_bytes(place) > entry.file_size or not _is_one_block(place):
            raise ConfigError(
                f"{str(self.path)!r} is damaged: it doesn't hold all data of tensor {quoted(name)}. "
                "Copy the file again, or export another step"
            )
        if self._has_checksums and place.start not in self._sound and self._checksum(place) != entry.CRC:
            raise ConfigError(
                f"{str(self.path)!r} is damaged: the data of tensor {quoted(name)} doesn't match its checksum. "
                "Copy the file again, or export another step"
            )
        self._sound.add(place.start)

    def _checksum(self, place: FileRegion) -> int:
        checksum, end = 0, place.start + place.num_bytes
        for start in range(place.start, end, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, end)
            checksum = zlib.crc32(memoryview(self._map)[start:stop], checksum)
            self._release(start, stop)
        return checksum

    @staticmethod
    def _needed_bytes(place: FileRegion) -> int:
        last = sum((size - 1) * step for size, step in zip(place.shape, place.stride, strict=True))
        return (place.storage_offset + last + 1) * place.dtype.itemsize

    def _check_entries(self, entries: list[zipfile.ZipInfo]) -> None:
        """Refuse records that torch.save never writes: compressed, overlapping, of one name, or a huge description."""
        packed = (entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if any(packed) or any(entry.compress_size != entry.file_size for entry in entries):
            raise ValueError("it has compressed records, which torch.save never writes")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it has two records of one name")
        if sum(entry.file_size for entry in entries) > self.num_bytes:
            raise ValueError("its records overlap")
        num_data = sum("/data/" in entry.filename for entry in entries)
        most = min(_STRUCTURE_BYTES + num_data * _STRUCTURE_BYTES_PER_TENSOR, _MOST_STRUCTURE_BYTES)
        if (size := sum(entry.file_size for entry in entries if "/data/" not in entry.filename)) > most:
            raise ValueError(f"the description of its {num_data} tensors has {size} bytes, and {most} are allowed")

    def _check_structure(self, archive: zipfile.ZipFile) -> None:
        """Everything but the tensors' data is read once, which compares its checksums."""
        if not self._has_checksums:
            logger.warning("%s was saved without checksums: damage to its data would go unseen", self.path.name)
            return
        for entry in archive.infolist():
            if "/data/" not in entry.filename:
                archive.read(entry)

    def _check_description(self) -> None:
        for start, entry in self._records.items():
            if entry.filename.endswith("/byteorder"):
                recorded = self._map[start : start + min(entry.file_size, 20)]
                if recorded != sys.byteorder.encode():
                    raise ValueError(f"its byte order is {recorded!r}, and this machine's is {sys.byteorder}")
            elif entry.filename.endswith("/data.pkl"):
                check_tuples(self._map[start : start + entry.file_size])

    def _data_start(self, entry: zipfile.ZipInfo) -> int:
        name, extra = (
            int.from_bytes(self._map[entry.header_offset + at : entry.header_offset + at + 2], "little")
            for at in (_LENGTHS, _LENGTHS + 2)
        )
        return entry.header_offset + _FIXED_BYTES + name + extra


def _why_not_plain(name: object, tensor: Tensor) -> str | None:
    """The reason why `tensor` is not a dense block of numbers under a name, as state dicts have them; None if it is."""
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= _MOST_NAME_CHARACTERS:
        return f"whose name is not 1 to {_MOST_NAME_CHARACTERS} printable characters"
    if tensor.dtype not in DTYPES_BY_NAME.values():
        return f"whose type {tensor.dtype} is none of {', '.join(DTYPES_BY_NAME)}"
    if isinstance(tensor, ShardedTensor):
        locals_, shape = [shard.tensor for shard in tensor.local_shards()], tensor.size()
    elif isinstance(tensor, DTensor):
        locals_, shape = [tensor._local_tensor], tensor.shape
    else:
        locals_, shape = [tensor], tensor.shape
    if len(shape) > _MOST_DIMENSIONS or any(local.dim() > _MOST_DIMENSIONS for local in locals_):
        return f"of {len(shape)} dimensions, and {_MOST_DIMENSIONS} are allowed"
    for local in locals_:
        if local.dtype != tensor.dtype:
            return f"which is {tensor.dtype} and holds {local.dtype}"
        # Bits that change the meaning of the stored numbers, and kinds without one block of memory.
        if local.layout is not torch.strided or local.is_quantized or local.is_neg() or local.is_conj():
            return "which is sparse, quantized or a lazy view"
        if local.untyped_storage()._checkpoint_offset is None:
            return "which has no data in the file"
    return None


def _is_one_block(place: FileRegion) -> bool:
    """Return whether no two values of the tensor share memory, so that it is no larger than its data."""
    reach = 0
    for step, size in sorted(zip(place.stride, place.shape, strict=True)):
        if size > 1:
            if step <= reach:
                return False
            reach += (size - 1) * step
    return True


class _BoundedReads:
    """A file for zipfile that refuses a single read larger than any that a sound file needs."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, _MOST_READ_BYTES + 1) if size >= 0 else _MOST_READ_BYTES + 1)
        if len(content) > _MOST_READ_BYTES:
            raise ValueError(f"its table of contents has more than {_MOST_READ_BYTES} bytes")
        return content
