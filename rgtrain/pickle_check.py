"""Check the pickles of a training checkpoint before verl loads them, because verl loads them without restrictions."""

import logging
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

# Imported because it puts DTensors and their placements on torch's list.
from torch.distributed.tensor import DTensor  # noqa: F401

from rgtrain.errors import ConfigError

# The folders of a checkpoint that verl reads `*.pt` files from; `data.pt` stands in the checkpoint's own folder.
_FOLDERS = ("", "actor", "critic")
_ZIP_START = b"PK\x03\x04"
# torch's own list allows tensors, DTensors and plain values, which is all that the export reads. Extra state holds the
# state of numpy's random generator as well. None of these functions runs code that a file brings.
_ALLOWED_BESIDES_TENSORS = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("uint32", "uint64", "int32", "int64", "float32", "float64")),
    *((np._core.multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]


def check_pickles(checkpoint: Path) -> None:
    """Read the structure of every file that verl would load from `checkpoint`, with torch's restricted unpickler.

    It uses the archive reader of `torch.load`, so that both read the same bytes. The data of tensors is not read.

    Args:
        checkpoint: A `global_step_N` folder.

    Raises:
        ConfigError: A file is damaged, or loading it would call a function that is not on the list.
    """
    for folder in _FOLDERS:
        for path in sorted((checkpoint / folder).glob("*.pt")):
            _check(path)


def _check(path: Path) -> None:
    # torch reads any other start as its old format, which is several pickles in a row.
    if not path.is_file() or not _starts_as_zip(path):
        raise ConfigError(
            f"{str(path)!r} is no file that torch.save writes: restore it, or resume from another checkpoint"
        )
    try:
        with (
            warnings.catch_warnings(),
            FakeTensorMode(),
            _quiet_meshes(),
            torch.serialization.safe_globals(_ALLOWED_BESIDES_TENSORS),
        ):
            # torch warns about formats that it then refuses.
            warnings.simplefilter("ignore")
            torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
        reason = f"it calls {found[1]}" if found else "it holds more than tensors and plain values"
        raise ConfigError(
            f"{str(path)!r} could run code of its author if it were loaded ({reason}), so the run does not resume from "
            "it: use a checkpoint that a run of yours has saved"
        ) from None
    except Exception as error:  # A damaged file can break its reader anywhere.
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{str(path)!r} is damaged and cannot be read ({lines[0][:200]}): restore it, or resume from "
            "another checkpoint"
        ) from None


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP_START)) == _ZIP_START


@contextmanager
def _quiet_meshes() -> Iterator[None]:
    """torch warns about each mesh that is loaded without process groups. None are needed here."""
    mesh_logger = logging.getLogger("torch.distributed.device_mesh")
    before = mesh_logger.level
    mesh_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        mesh_logger.setLevel(before)
