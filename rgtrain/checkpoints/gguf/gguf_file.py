"""Read a GGUF file from an unknown author: every length is checked before anything is read or allocated.

The format is specified at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from rgtrain.checkpoints.untrusted_files import open_regular, quoted
from rgtrain.errors import ConfigError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# The metadata of a model with 260,000 tokens has 15 MB.
_MAX_METADATA_BYTES = 256 * 2**20
_MAX_FIELDS = 4096
_MAX_TENSORS = 100_000
_MAX_NAME_BYTES = 65_535
_MAX_DIMENSIONS = 4
_MAX_PARTS = 1000
_STRING, _ARRAY, _BOOL = 8, 9, 7
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)
_FIX = "download or convert it again"


@dataclass(frozen=True)
class GgufTensor:
    """The place of a tensor in a GGUF file.

    Attributes:
        name: The name by llama.cpp's rules, such as "blk.0.attn_q.weight".
        shape: The shape in torch's order, which is the reverse of the file's.
        kind: The type of the stored values, most of them quantised in blocks.
        path: The file.
        start: The position of the first byte.
        num_bytes: The number of bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    path: Path
    start: int
    num_bytes: int

    @property
    def num_values(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def bits_per_value(self) -> float:
        """The average number of bits of a stored value."""
        return 8 * self.num_bytes / self.num_values

    @property
    def is_quantised(self) -> bool:
        """Whether the values are stored in blocks that share a scale."""
        return GGML_QUANT_SIZES[self.kind][0] > 1

    def read(self) -> np.ndarray:
        """Return the values, dequantised.

        Returns:
            An array of fp32 with `shape`.

        Raises:
            ConfigError: The file can't be read, or has changed since it was opened.
        """
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        with open_regular(self.path) as file:
            file.seek(self.start)
            content = np.frombuffer(file.read(self.num_bytes), np.uint8)
        if len(content) != self.num_bytes:
            raise ConfigError(f"{str(self.path)!r} became shorter while it was read: {_FIX}")
        rows = content.reshape(*self.shape[:-1], self.shape[-1] // block * block_bytes)
        plain = {
            GGMLQuantizationType.F32: np.float32,
            GGMLQuantizationType.F16: np.float16,
            GGMLQuantizationType.F64: np.float64,
        }.get(self.kind)
        if plain is not None:
            return rows.view(plain).reshape(self.shape).astype(np.float32)
        # Quantised values may hold a scale that is not finite; the conversion checks the result.
        with np.errstate(all="ignore"):
            return np.asarray(dequantize(rows, self.kind), dtype=np.float32).reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """The metadata and tensors of a GGUF file, or of all parts of one that is split.

    Attributes:
        paths: The files.
        metadata: The metadata of the first file by key: numbers, booleans, texts, and lists of these.
        tensors: The tensors of all files by name.
    """

    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def text(self, key: str, default: str = "") -> str:
        """Return the text under `key`. Raise ConfigError if it holds something else."""
        return str(self._typed(key, default, str, "a text"))

    def integer(self, key: str, default: int | None = None) -> int | None:
        """Return the integer under `key`. Raise ConfigError if it holds something else."""
        value = self._typed(key, default, int, "an integer")
        return None if value is None else int(value)

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return the finite number under `key`. Raise ConfigError if it holds something else."""
        value = self._typed(key, default, int | float, "a number")
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{str(self.paths[0])!r} has {key} = {value}, which is not finite: {_FIX}")
        return None if value is None else float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return the boolean under `key`. Raise ConfigError if it holds something else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{str(self.paths[0])!r} has {key} = {value!r:.60}, not a boolean: {_FIX}")
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        """Return the list of `kind` under `key`, empty if there is none. Raise ConfigError for something else."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise ConfigError(f"{str(self.paths[0])!r} has a {key} that is not a list of {kind.__name__}: {_FIX}")
        return value

    def _typed(self, key: str, default: Any, kind: Any, label: str) -> Any:
        value = self.metadata.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ConfigError(f"{str(self.paths[0])!r} has {key} = {value!r:.60}, not {label}: {_FIX}")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file. If its name is that of a part of a split file, all parts are read.

    Args:
        path: The file.

    Returns:
        The metadata, and the places of the tensors.

    Raises:
        ConfigError: The file is missing, damaged, cut off, or of another format, or a part of it is missing.
    """
    paths = _parts_of(path)
    read = [_read_header(one) for one in paths]
    metadata = read[0][0]
    for number, (one, (fields, _)) in enumerate(zip(paths, read, strict=True)):
        if fields.get("split.count", 1) not in (0, len(paths)) or fields.get("split.no", 0) != number:
            raise ConfigError(
                f"{str(one)!r} is a part of a split GGUF, but not the one that its name says: put all parts, named "
                "STEM-00001-of-0000N.gguf, into one folder"
            )
    tensors: dict[str, GgufTensor] = {}
    for one, (_, found) in zip(paths, read, strict=True):
        for tensor in found:
            if tensor.name in tensors:
                raise ConfigError(f"{str(one)!r} repeats the tensor {quoted(tensor.name)}: {_FIX}")
            tensors[tensor.name] = tensor
    if not tensors:
        raise ConfigError(f"{str(path)!r} holds no tensors, so it is no model: give the file of a model")
    return GgufFile(tuple(paths), metadata, tensors)


def _parts_of(path: Path) -> list[Path]:
    named = _PART.fullmatch(path.name)
    if not named or not 1 < (count := int(named["count"])) <= _MAX_PARTS:
        return [path]
    parts = [path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.exists()]:
        raise ConfigError(
            f"{str(path)!r} is one of {count} parts, of which {len(missing)} are missing, such as {missing[0]!r}: put "
            "all parts into one folder"
        )
    return parts


def _read_header(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    try:
        with open_regular(path) as file:
            return _HeaderReader(path, file).read()
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}: give the path of a .gguf file") from None
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r} ({error.strerror or error}): {_FIX}") from None


class _HeaderReader:
    """Reads the header of one file in order. `_take` is the only place that reads, and it checks the bounds."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0

    def read(self) -> tuple[dict[str, Any], list[GgufTensor]]:
        if self._size < len(_MAGIC) or (magic := self._take(len(_MAGIC))) != _MAGIC:
            found = "is empty" if not self._size else f"does not begin with {_MAGIC.decode()}"
            if self._size >= len(_MAGIC) and magic == _MAGIC[::-1]:
                found = "has the byte order of another machine"
            raise self._error(found, fix="give a .gguf file that llama.cpp can read")
        version = self._number("I")
        if version not in _VERSIONS:
            big_endian = ", and may have the byte order of another machine" if not version & 0xFFFF else ""
            raise self._error(
                f"has version {version} of the format{big_endian}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read",
                fix="convert the model again",
            )
        num_tensors = self._count("Q", _MAX_TENSORS, "tensors")
        num_fields = self._count("Q", _MAX_FIELDS, "metadata fields")
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._text(_MAX_NAME_BYTES, "a metadata key")
            if key in metadata:
                raise self._error(f"repeats the metadata key {quoted(key)}")
            metadata[key] = self._value(self._number("I"), key)
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        return metadata, self._placed(entries, metadata)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int, int]:
        name = self._text(_MAX_NAME_BYTES, "a tensor's name")
        num_dimensions = self._count("I", _MAX_DIMENSIONS, f"dimensions of {quoted(name)}")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
        number = self._number("I")
        offset = self._number("Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise self._error(
                f"stores tensor {quoted(name)} as type {number}, which is unknown here", fix="quantise it to another"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        # Python's integers don't overflow, unlike the product that a 64-bit reader computes.
        num_values = math.prod(shape)
        if not shape or not num_values or shape[-1] % block:
            raise self._error(f"has a tensor {quoted(name)} with the impossible shape {list(shape)} for {kind.name}")
        return name, shape, kind, offset, num_values // block * block_bytes

    def _placed(self, entries: list[tuple[Any, ...]], metadata: dict[str, Any]) -> list[GgufTensor]:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise self._error(f"has general.alignment = {alignment!r:.60}, which is not a power of two")
        data = -(-self._position // alignment) * alignment
        end = 0
        for name, shape, _, offset, num_bytes in sorted(entries, key=lambda entry: entry[3]):
            if offset < end:
                raise self._error(f"has overlapping tensors, such as {quoted(name)}")
            end = offset + num_bytes
            if data + end > self._size:
                raise self._error(
                    f"has {self._size} bytes, but tensor {quoted(name)} of shape {list(shape)} ends at byte "
                    f"{data + end}, so the file is cut off"
                )
        return [
            GgufTensor(name, shape, kind, self._path, data + offset, num_bytes)
            for name, shape, kind, offset, num_bytes in entries
        ]

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(_MAX_METADATA_BYTES, f"the text of {quoted(key)}")
        if kind != _ARRAY:
            return self._number(self._format(kind, key))
        item_kind = self._number("I")
        length = self._number("Q")
        if item_kind == _STRING:
            # Each text has 8 bytes at least, so a length without content behind it ends here.
            self._check_left(8 * length, f"the list {quoted(key)}")
            return [self._text(_MAX_METADATA_BYTES, f"an item of {quoted(key)}") for _ in range(length)]
        item_format = self._format(item_kind, key)
        content = self._take(struct.calcsize(item_format) * length, f"the list {quoted(key)}")
        return [item for (item,) in struct.iter_unpack(f"<{item_format}", content)]

    def _format(self, kind: int, key: str) -> str:
        if kind not in _FORMATS:
            raise self._error(f"has a metadata field {quoted(key)} of unknown type {kind}")
        return _FORMATS[kind]

    def _number(self, code: str) -> Any:
        [value] = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))
        return value

    def _count(self, code: str, limit: int, label: str) -> int:
        value = int(self._number(code))
        if value > limit:
            raise self._error(f"claims {value} {label}, more than the {limit} that are read")
        return value

    def _text(self, max_bytes: int, label: str) -> str:
        length = self._number("Q")
        if length > max_bytes:
            raise self._error(f"claims {length} bytes for {label}, more than the {max_bytes} that are read")
        # A text that is not UTF-8, such as a half of a character in an old vocabulary, is kept readable.
        return self._take(length, label).decode("utf-8", "replace")

    def _take(self, num_bytes: int, label: str = "the header") -> bytes:
        self._check_left(num_bytes, label)
        content = self._file.read(num_bytes)
        self._position += num_bytes
        if len(content) != num_bytes:
            raise self._error("became shorter while it was read")
        return content

    def _check_left(self, num_bytes: int, label: str) -> None:
        if num_bytes > self._size - self._position:
            raise self._error(f"ends within {label}, so it is cut off or damaged")
        if self._position + num_bytes > _MAX_METADATA_BYTES:
            raise self._error(f"has a header of more than {_MAX_METADATA_BYTES} bytes")

    def _error(self, what: str, *, fix: str = _FIX) -> ConfigError:
        return ConfigError(f"{str(self._path)!r} {what}: {fix}")


def unreadable_types(tensors: Iterable[GgufTensor]) -> list[str]:
    """Return the names of the types of `tensors` that can't be dequantised."""
    plain = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.F64}
    unreadable = []
    for kind in sorted({tensor.kind for tensor in tensors} - plain):
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            unreadable.append(kind.name)
    return unreadable
