"""What one rank saved: a zip file of records, one per storage, each checked against its checksum on first use."""

import logging
import sys
import zipfile
import zlib
from pathlib import Path

from torch import Tensor

from rgtrain.checkpoints.mapped_file import BLOCK_BYTES, MappedFile, Place
from rgtrain.checkpoints.unpickling import load_structure, named_damage
from rgtrain.errors import ConfigError

# In a zip file's entry: where the lengths of its name and of its extra field stand, and where its fixed part ends.
_LENGTHS, _FIXED_BYTES = 26, 30

logger = logging.getLogger(__name__)


class RankFile(MappedFile):
    """A file that torch.save wrote: `values` are its tensors by name, without their data (see load_structure)."""

    def __init__(self, path: Path, *, trust: bool = False):
        """Raises ConfigError where the file is damaged, or (unless `trust`) can't be read without running its code."""
        with named_damage(path):
            super().__init__(path)
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                # torch writes zeros where it was told to compute none.
                self._has_checksums = any(entry.CRC for entry in entries)
                self._check_structure(archive)
            self._records = {self._data_start(entry): entry for entry in entries}
        self._sound: set[int] = set()
        self.values = load_structure(path, trust=trust)

    def place(self, local: Tensor) -> Place:
        """Where the data of `local`, one of the `values` or a rank's part of one, lies. A scalar is a row of one."""
        start = local.untyped_storage()._checkpoint_offset
        num_bytes = self._records[start].file_size if start in self._records else 0
        shape, stride = (tuple(local.shape), tuple(local.stride())) if local.dim() else ((1,), (1,))
        return Place(start, num_bytes, local.dtype, shape, stride, local.storage_offset())

    def check(self, name: str, place: Place) -> None:
        entry = self._records.get(place.start)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or self._needed_bytes(place) > entry.file_size:
            raise ConfigError(f"{str(self.path)!r} is damaged: it doesn't hold all data of tensor {name!r}")
        if self._has_checksums and place.start not in self._sound and self._checksum(place) != entry.CRC:
            raise ConfigError(
                f"{str(self.path)!r} is damaged: the data of tensor {name!r} doesn't match its checksum. "
                "Copy the file again, or export another step"
            )
        self._sound.add(place.start)

    def _checksum(self, place: Place) -> int:
        checksum, end = 0, place.start + place.num_bytes
        for start in range(place.start, end, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, end)
            checksum = zlib.crc32(memoryview(self._map)[start:stop], checksum)
            self._release(start, stop)
        return checksum

    @staticmethod
    def _needed_bytes(place: Place) -> int:
        last = sum((size - 1) * step for size, step in zip(place.shape, place.stride, strict=True))
        return (place.storage_offset + last + 1) * place.dtype.itemsize

    def _check_structure(self, archive: zipfile.ZipFile) -> None:
        """Everything but the tensors' data is read once, which compares its checksums."""
        if not self._has_checksums:
            logger.warning("%s was saved without checksums: damage to its data would go unseen", self.path.name)
            return
        for entry in archive.infolist():
            if "/data/" in entry.filename:
                continue
            content = archive.read(entry)
            if entry.filename.endswith("/byteorder") and content.decode() != sys.byteorder:
                raise ConfigError(f"{str(self.path)!r} is {content.decode()}-endian, this machine is not: use another")

    def _data_start(self, entry: zipfile.ZipInfo) -> int:
        name, extra = (
            int.from_bytes(self._map[entry.header_offset + at : entry.header_offset + at + 2], "little")
            for at in (_LENGTHS, _LENGTHS + 2)
        )
        return entry.header_offset + _FIXED_BYTES + name + extra
