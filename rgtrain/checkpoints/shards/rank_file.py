"""Read a per-rank shard: a zip file with one record per storage, checked against its checksum on first use."""

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
from rgtrain.checkpoints.shards.unpickling import check_tuple_depth, load_structure, refuse_damage
from rgtrain.checkpoints.untrusted_files import open_regular, quoted
from rgtrain.errors import ConfigError

# Offsets in a zip file's local header: the lengths of name and extra field, and the end of the fixed part.
_LENGTHS, _FIXED_BYTES = 26, 30

# The description of one tensor takes a few hundred bytes of data.pkl, and the other records a few bytes each.
_STRUCTURE_BYTES = 64 * 1024
_STRUCTURE_BYTES_PER_TENSOR = 4 * 1024
_MAX_STRUCTURE_BYTES = _MAX_READ_BYTES = 24 * 2**20
# torch's own limit for views.
_MAX_DIMENSIONS = 64
_MAX_NAME_CHARACTERS = 512

logger = logging.getLogger(__name__)


class RankFile(MappedFile):
    """A file written by torch.save. `values` are its tensors by name, without their data (see load_structure)."""

    def __init__(self, path: Path, *, trust: bool = False, is_verified: bool = False):
        """Open the file. Raise ConfigError if it is damaged, or reading it would run code and `trust` is false."""
        with refuse_damage(path):
            super().__init__(path)
            # zipfile reads the whole table of contents, whose length is an unchecked number in the file.
            with open_regular(path) as file, zipfile.ZipFile(_BoundedReads(file)) as archive:
                entries = archive.infolist()
                # torch writes zeros if checksums are disabled.
                self._has_checksums = any(entry.CRC for entry in entries)
                self._check_entries(entries)
                self._check_structure(archive)
            self._records = {self._data_start(entry): entry for entry in entries}
            if any(start + entry.file_size > self.num_bytes for start, entry in self._records.items()):
                raise ValueError("a record ends after the file")
            self._check_description()
        # Data is compared with its checksum on first use, unless the whole file has been.
        self._sound: set[int] = set(self._records) if is_verified else set()
        self.values = self._load_values(trust=trust)
        for name, tensor in self.values.items():
            if reason := _reason_to_refuse(name, tensor):
                raise ConfigError(f"{str(path)!r} has tensor {quoted(name)}, {reason}: give a model's rank file")

    def _load_values(self, *, trust: bool) -> dict[str, Tensor]:
        return load_structure(self.path, trust=trust)

    def check_sizes(self, *, max_bytes: int) -> None:
        """Raise ConfigError if a tensor is larger than `max_bytes`, the total size of all rank files."""
        for name, tensor in self.values.items():
            shape = tuple(tensor.size())
            # A tensor without values can still have a huge dimension.
            if max(math.prod(shape) * tensor.dtype.itemsize, *shape, 0) > max_bytes:
                raise ConfigError(
                    f"{str(self.path)!r} has tensor {name!r} of shape {list(shape)}, but all rank files together have "
                    f"{max_bytes} bytes: copy them again, or use another step"
                )

    def locate(self, local: Tensor) -> FileRegion:
        """Return the location of the data of `local`, one of `values` or its local part. A scalar has one row."""
        start = local.untyped_storage()._checkpoint_offset
        if start is None:
            raise ValueError(f"a tensor has no data in {self.path.name}")
        num_bytes = self._records[start].file_size if start in self._records else 0
        shape, stride = (tuple(local.shape), tuple(local.stride())) if local.dim() else ((1,), (1,))
        return FileRegion(start, num_bytes, local.dtype, shape, stride, int(local.storage_offset()))

    def check(self, name: str, region: FileRegion) -> None:
        """Raise ConfigError if the tensor's data is incomplete or doesn't match its checksum."""
        entry = self._records.get(region.start)
        if entry is None or self._needed_bytes(region) > entry.file_size or not _is_without_overlap(region):
            raise ConfigError(
                f"{str(self.path)!r} is damaged: data of tensor {quoted(name)} is missing. "
                "Copy the file again, or use another step"
            )
        if self._has_checksums and region.start not in self._sound and self._checksum(region) != entry.CRC:
            raise ConfigError(
                f"{str(self.path)!r} is damaged: the data of tensor {quoted(name)} doesn't match its checksum. "
                "Copy the file again, or use another step"
            )
        self._sound.add(region.start)

    def _checksum(self, region: FileRegion) -> int:
        checksum, end = 0, region.start + region.num_bytes
        for start in range(region.start, end, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, end)
            checksum = zlib.crc32(memoryview(self._map)[start:stop], checksum)
            self._release(start, stop)
        return checksum

    @staticmethod
    def _needed_bytes(region: FileRegion) -> int:
        last = sum((size - 1) * step for size, step in zip(region.shape, region.stride, strict=True))
        return (region.storage_offset + last + 1) * region.dtype.itemsize

    def _check_entries(self, entries: list[zipfile.ZipInfo]) -> None:
        """Refuse records that torch.save never writes: compressed, overlapping, duplicate, or a huge description."""
        packed = (entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if any(packed) or any(entry.compress_size != entry.file_size for entry in entries):
            raise ValueError("it has compressed records, which torch.save never writes")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it has two records with the same name")
        if sum(entry.file_size for entry in entries) > self.num_bytes:
            raise ValueError("its records overlap")
        num_data = sum("/data/" in entry.filename for entry in entries)
        limit = min(_STRUCTURE_BYTES + num_data * _STRUCTURE_BYTES_PER_TENSOR, _MAX_STRUCTURE_BYTES)
        if (size := sum(entry.file_size for entry in entries if "/data/" not in entry.filename)) > limit:
            raise ValueError(f"the description of its {num_data} tensors has {size} bytes, but {limit} are allowed")

    def _check_structure(self, archive: zipfile.ZipFile) -> None:
        """Read everything except tensor data once, because zipfile compares checksums on reading."""
        if not self._has_checksums:
            logger.warning("%s was saved without checksums, so damage to its data can't be detected", self.path.name)
            return
        for entry in archive.infolist():
            if "/data/" not in entry.filename:
                archive.read(entry)

    def _check_description(self) -> None:
        for start, entry in self._records.items():
            if entry.filename.endswith("/byteorder"):
                recorded = self._map[start : start + min(entry.file_size, 20)]
                if recorded != sys.byteorder.encode():
                    raise ValueError(f"its byte order is {recorded!r}, but this machine's is {sys.byteorder}")
            elif entry.filename.endswith("/data.pkl"):
                check_tuple_depth(self._map[start : start + entry.file_size])

    def _data_start(self, entry: zipfile.ZipInfo) -> int:
        name, extra = (
            int.from_bytes(self._map[entry.header_offset + at : entry.header_offset + at + 2], "little")
            for at in (_LENGTHS, _LENGTHS + 2)
        )
        return entry.header_offset + _FIXED_BYTES + name + extra


def _reason_to_refuse(name: object, tensor: Tensor) -> str | None:
    """Return why `tensor` is not a named, dense block of numbers as in a state dict, or None if it is."""
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= _MAX_NAME_CHARACTERS:
        return f"whose name is not 1 to {_MAX_NAME_CHARACTERS} printable characters"
    if tensor.dtype not in DTYPES_BY_NAME.values():
        return f"whose type {tensor.dtype} is not one of {', '.join(DTYPES_BY_NAME)}"
    if isinstance(tensor, ShardedTensor):
        locals_, shape = [shard.tensor for shard in tensor.local_shards()], tensor.size()
    elif isinstance(tensor, DTensor):
        locals_, shape = [tensor._local_tensor], tensor.shape
    else:
        locals_, shape = [tensor], tensor.shape
    if len(shape) > _MAX_DIMENSIONS or any(local.dim() > _MAX_DIMENSIONS for local in locals_):
        return f"which has {len(shape)} dimensions, but at most {_MAX_DIMENSIONS} are allowed"
    for local in locals_:
        if local.dtype != tensor.dtype:
            return f"which is {tensor.dtype} and holds {local.dtype}"
        # These flags and layouts change the meaning of the stored numbers.
        if local.layout is not torch.strided or local.is_quantized or local.is_neg() or local.is_conj():
            return "which is sparse, quantized or a lazy view"
        if local.untyped_storage()._checkpoint_offset is None:
            return "which has no data in the file"
    return None


def _is_without_overlap(region: FileRegion) -> bool:
    """Return whether no two values of the tensor share memory. Otherwise it could be larger than its data."""
    reach = 0
    for step, size in sorted(zip(region.stride, region.shape, strict=True)):
        if size > 1:
            if step <= reach:
                return False
            reach += (size - 1) * step
    return True


class _BoundedReads:
    """File wrapper for zipfile that refuses a read larger than a valid file needs."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, _MAX_READ_BYTES + 1) if size >= 0 else _MAX_READ_BYTES + 1)
        if len(content) > _MAX_READ_BYTES:
            raise ValueError(f"its table of contents has more than {_MAX_READ_BYTES} bytes")
        return content
