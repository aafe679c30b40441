"""Check the pickles of a training checkpoint before verl loads them, because verl loads them without restrictions."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

# Imported because it puts DTensors and their placements on torch's list.
from torch.distributed.tensor import DTensor  # noqa: F401

from rgtrain.errors import ConfigError

# The folders of a checkpoint that verl reads `*.pt` files from; `data.pt` stands in the checkpoint's own folder.
_FOLDERS = ("", "actor", "critic")
_ZIP_START = b"PK\x03\x04"
# Besides tensors, a checkpoint holds the state of numpy's random generator. numpy was renamed inside in version 2.
_NUMPY_NAMES = frozenset(
    {"numpy.ndarray", "numpy.dtype"}
    | {f"numpy.{core}.multiarray.{name}" for core in ("_core", "core") for name in ("_reconstruct", "scalar")}
)


def check_pickles(checkpoint: Path) -> None:
    """Check every file that verl would load from `checkpoint`. Nothing in it is called, and no tensor's data is read.

    The names that a file may use are those on torch's list for `weights_only=True`, which the export is limited to as
    well, and numpy's for arrays. The archive is read by the reader of `torch.load`, so that both see the same bytes.

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
        archive = torch._C.PyTorchFileReader(str(path))
        if archive.has_record("constants.pkl"):  # type: ignore[attr-defined]  # torch's stub leaves it out
            raise _Refused("it is a TorchScript program")
        _Checker(io.BytesIO(archive.get_record("data.pkl"))).load()
    except _Refused as refused:
        raise ConfigError(
            f"{str(path)!r} could run code of its author if it were loaded ({refused}), so the run does not resume "
            "from it: use a checkpoint that a run of yours has saved"
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


class _Refused(Exception):
    """The file uses a name that is not on the list."""


class _Checker(pickle.Unpickler):
    """Follows a pickle with stand-ins for everything that it names, so that none of it is imported or called."""

    def find_class(self, module: str, name: str) -> type:
        # torch.save writes Python 2's name of this module, which pickle then maps to today's.
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        added = _get_user_allowed_globals()  # type: ignore[no-untyped-call]  # torch has no annotation
        if full_name not in _NUMPY_NAMES | _get_allowed_globals().keys() | added.keys():
            raise _Refused(f"it uses {full_name[:200]!r}")
        return type(name, (_StandIn,), {})

    def persistent_load(self, reference: Any) -> "_StandIn":
        return _StandIn()


class _StandIn:
    """Takes the place of a function or class, and of an object made with it. An object cannot be called."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        """Every object can be made."""

    # For a class instead of an object, pickle passes one argument too few: no file may change a class.
    def __setstate__(self, state: Any) -> None:
        """Every object can be given a state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """As in a dictionary."""

    def append(self, item: Any) -> None:
        """As in a list."""

    def add(self, item: Any) -> None:
        """As in a set."""
