"""Tensors in the safetensors files of a Hugging Face folder, read as those of a checkpoint are."""

import json
import math
from pathlib import Path

from rgtrain.checkpoints.mapped_file import MappedFile, Place
from rgtrain.checkpoints.safetensors_format import DTYPES_BY_NAME
from rgtrain.checkpoints.tensors import Piece, SplitTensor
from rgtrain.errors import ConfigError


def holds_safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def read_safetensors(folder: Path) -> dict[str, SplitTensor]:
    """All tensors of the folder's safetensors files by name, their data left on disk.

    Raises ConfigError where a file is damaged, or a name occurs twice.
    """
    tensors: dict[str, SplitTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found = _read_file(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{str(path)!r} is damaged and can't be read ({error}): copy it again") from None
        if twice := sorted(tensors.keys() & found.keys()):
            raise ConfigError(f"{str(folder)!r} has tensor {twice[0]!r} in two files: remove what isn't the model's")
        tensors |= found
    return tensors


def _read_file(path: Path) -> dict[str, SplitTensor]:
    file = MappedFile(path)
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(min(length, path.stat().st_size)))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), DTYPES_BY_NAME[entry["dtype"]]
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > path.stat().st_size or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the data of tensor {name!r} is cut short")
        # A scalar is a row of one.
        rows = shape or (1,)
        stride = tuple(math.prod(rows[dim + 1 :]) for dim in range(len(rows)))
        piece = Piece(file, Place(start, end - start, dtype, rows, stride), (0,) * len(rows))
        tensors[name] = SplitTensor(name, shape, dtype, (piece,) if end > start else ())
    return tensors
