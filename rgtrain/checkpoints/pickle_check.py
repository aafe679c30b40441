"""Check the pickles of a training checkpoint before verl loads them, because verl loads them without restrictions."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

# Importing this adds DTensors and their placements to torch's list.
from torch.distributed.tensor import DTensor  # noqa: F401

from rgtrain.errors import ConfigError

# The subfolders of a checkpoint from which verl loads `*.pt` files; "" is for `data.pt` in the checkpoint itself.
_FOLDERS = ("", "actor", "critic")
_ZIP_START = b"PK\x03\x04"
# A checkpoint also holds the state of numpy's random generator. numpy 2 renamed the module `core` to `_core`.
_NUMPY_NAMES = frozenset(
    {"numpy.ndarray", "numpy.dtype"}
    | {f"numpy.{core}.multiarray.{name}" for core in ("_core", "core") for name in ("_reconstruct", "scalar")}
)


def check_pickles(checkpoint: Path) -> None:
    """Check every file that verl would load from `checkpoint`, without calling its code or reading tensor data.

    A file may use the names on torch's list for `weights_only=True`, to which the export is limited too, and numpy's
    names for arrays. The check uses the archive reader of `torch.load`, so both see the same bytes.

    Args:
        checkpoint: A `global_step_N` folder.

    Raises:
        ConfigError: A file is damaged, or loading it would call a function that is not on these lists.
    """
    for folder in _FOLDERS:
        for path in sorted((checkpoint / folder).glob("*.pt")):
            _check(path)


def _check(path: Path) -> None:
    # torch reads a file with any other start in its old format, a sequence of pickles.
    if not path.is_file() or not _starts_as_zip(path):
        raise ConfigError(f"{str(path)!r} was not written by torch.save: restore it, or resume from another checkpoint")
    try:
        archive = torch._C.PyTorchFileReader(str(path))
        if archive.has_record("constants.pkl"):  # type: ignore[attr-defined]  # torch's stub leaves it out
            raise _Refused("it is a TorchScript program")
        _Checker(io.BytesIO(archive.get_record("data.pkl"))).load()
    except _Refused as refused:
        raise ConfigError(
            f"loading {str(path)!r} could run its author's code ({refused}): resume from a checkpoint that you "
            "saved yourself"
        ) from None
    except Exception as error:  # A damaged file can raise any exception.
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{str(path)!r} is damaged and cannot be read ({lines[0][:200]}): restore it, or resume from "
            "another checkpoint"
        ) from None


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP_START)) == _ZIP_START


class _Refused(Exception):
    """Raised for a file that could run code."""


class _Checker(pickle.Unpickler):
    """Unpickler that replaces everything a pickle names by stand-ins, so that nothing is imported or called."""

    def find_class(self, module: str, name: str) -> type:
        # torch.save writes the Python 2 name of this module, which pickle maps to the current one.
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        added = _get_user_allowed_globals()  # type: ignore[no-untyped-call]  # torch has no annotation
        if full_name not in _NUMPY_NAMES | _get_allowed_globals().keys() | added.keys():
            raise _Refused(f"it uses {full_name[:200]!r}")
        return type(name, (_StandIn,), {})

    def persistent_load(self, reference: Any) -> "_StandIn":
        return _StandIn()


class _StandIn:
    """Stand-in for a function or class, and for objects made with it. Such an object cannot be called."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        """Accept any arguments."""

    # On a class, pickle calls this with one argument too few, so no file can change a class.
    def __setstate__(self, state: Any) -> None:
        """Accept any state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Accept an item, as a dictionary does."""

    def append(self, item: Any) -> None:
        """Accept an item, as a list does."""

    def add(self, item: Any) -> None:
        """Accept an item, as a set does."""
