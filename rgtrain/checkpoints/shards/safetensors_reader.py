"""Read the safetensors files of a Hugging Face folder as tensors like those of a checkpoint."""

import math
from pathlib import Path

from rgtrain.checkpoints.shards.mapped_file import FileRegion, MappedFile
from rgtrain.checkpoints.shards.tensors import DTYPES_BY_NAME, Piece, SplitTensor
from rgtrain.checkpoints.untrusted_files import first_line, open_regular, parse_json_object, quoted
from rgtrain.errors import ConfigError

# Enough for 130,000 tensors. The largest models have a few thousand.
_MAX_HEADER_BYTES = 16 * 2**20


def holds_safetensors(folder: Path) -> bool:
    """Return whether `folder` has safetensors files."""
    return any(folder.glob("*.safetensors"))


def read_safetensors(folder: Path) -> dict[str, SplitTensor]:
    """Read the tensors of a folder's safetensors files, and leave their data on disk.

    Args:
        folder: A folder with any number of safetensors files.

    Returns:
        The tensors by name.

    Raises:
        ConfigError: A file is damaged, or two files have a tensor of the same name.
    """
    tensors: dict[str, SplitTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found = _read_file(path)
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise ConfigError(f"{str(path)!r} is damaged and can't be read ({reason}): copy it again") from None
        if twice := sorted(tensors.keys() & found.keys()):
            raise ConfigError(
                f"{str(folder)!r} has tensor {quoted(twice[0])} in two files: remove one that is not part of the model"
            )
        tensors |= found
    return tensors


def _read_file(path: Path) -> dict[str, SplitTensor]:
    file = MappedFile(path)
    with open_regular(path) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length} bytes, but at most {_MAX_HEADER_BYTES} are allowed")
        header = parse_json_object(opened.read(length), path)
    header.pop("__metadata__", None)
    tensors, held = {}, 0
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), DTYPES_BY_NAME[entry["dtype"]]
        start, end = entry["data_offsets"]
        if not all(type(number) is int and 0 <= number < 2**53 for number in (*shape, start, end)) or len(shape) > 64:
            raise ValueError(f"tensor {quoted(name)} has a size or offset that is not a whole number of at least 0")
        start, end = 8 + length + start, 8 + length + end
        if end > file.num_bytes or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the data of tensor {quoted(name)} is incomplete")
        held += end - start
        # A scalar has one row.
        rows = shape or (1,)
        stride = tuple(math.prod(rows[dim + 1 :]) for dim in range(len(rows)))
        piece = Piece(file, FileRegion(start, end - start, dtype, rows, stride), (0,) * len(rows))
        tensors[name] = SplitTensor(name, shape, dtype, (piece,) if end > start else ())
    if held > file.num_bytes:
        raise ValueError("its tensors overlap")
    return tensors
