"""The structure of a rank file: its tensors by name, with stand-ins for their data, and no code run unless trusted."""

import logging
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

# Imported for what they register: loading DTensors and their placements with weights_only needs no more.
from torch.distributed.tensor import DTensor  # noqa: F401

from rgtrain.checkpoints.shards.checkpoint import RANK_FILE
from rgtrain.checkpoints.untrusted_files import first_line, open_regular, printable, quiet_libraries, quoted
from rgtrain.errors import ConfigError

_MOST_LISTED = 8
_MOST_TUPLE_DEPTH = 16
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    ValueError,
    RuntimeError,
    IndexError,
    EOFError,
    struct.error,
)

logger = logging.getLogger(__name__)


def load_structure(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """The tensors that `path` holds, by name: fake ones, whose storages know their place in the file.

    Raises ConfigError where the file can't be read, and unless `trust` where that would run code it brings. Values that
    aren't tensors are left out, with a warning.
    """
    state = _unpickled(path, trust=trust)
    if not isinstance(state, dict):
        raise ConfigError(f"{str(path)!r} holds a {type(state).__name__}, not a model's named tensors")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(f"{str(path)!r} holds no tensors under its {len(state)} names: it is no model's rank file")
    if others := [f"{quoted(name)} ({type(value).__name__})" for name, value in state.items() if name not in tensors]:
        more = f" and {len(others) - _MOST_LISTED} more" if len(others) > _MOST_LISTED else ""
        listed = ", ".join(others[:_MOST_LISTED])
        logger.warning("%s: left out, as they are no tensors: %s%s", path.name, listed, more)
    return tensors


def check_tuples(content: bytes) -> None:
    """Raises ValueError for a pickle whose tuples nest deeply: hashing one of a hundred bytes can take years.

    Each tuple can hold the previous one twice, and Python hashes both. Only the depth of each value is followed here.
    """
    stack: list[Any] = []
    kept: dict[object, int] = {}
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name.endswith("GET"):
            stack.append(kept.get(argument, 0))
        elif name == "MEMOIZE" or name.endswith("PUT"):
            kept[len(kept) if name == "MEMOIZE" else argument] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            popped = []
            for taken in reversed(operation.stack_before):
                if taken is pickletools.stackslice:
                    while stack and stack[-1] is not pickletools.markobject:
                        popped.append(stack.pop())
                else:
                    popped.append(stack.pop())
            depths = (value for value in popped if type(value) is int)
            depth = 1 + max(depths, default=0) if "TUPLE" in name else 0
            if depth > _MOST_TUPLE_DEPTH:
                raise ValueError(f"its tuples nest more than {_MOST_TUPLE_DEPTH} deep")
            for made in operation.stack_after:
                stack.append(made if made is pickletools.markobject else depth)


def _unpickled(path: Path, *, trust: bool) -> object:
    group = _process_group(path) if trust else nullcontext()
    try:
        # Nothing is allocated in this mode, and torch notes for each storage where it lies in the file.
        with FakeTensorMode(), quiet_libraries(), group, open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if needs := re.findall(r"GLOBAL (\S+)", str(error)):
            raise ConfigError(
                f"{str(path)!r} needs {printable(needs[0], most=100)} to be read: only files of plain tensors and "
                "DTensors are read, so that no code in them runs. If you trust who wrote it, --trust-checkpoint lets "
                "its code run; else save with FSDP2 (actor_rollout_ref.actor.strategy=fsdp2), or with FSDP1 on a "
                "device mesh as verl does"
            ) from None
        raise _damaged(path, error) from None
    except Exception as error:  # A damaged file can break its reader anywhere.
        raise _damaged(path, error) from None


@contextmanager
def named_damage(path: Path) -> Iterator[None]:
    """Turns what a damaged file does to its reader into a ConfigError that names the file."""
    try:
        yield
    except _DAMAGE as error:
        raise error if isinstance(error, ConfigError) else _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = first_line(error)
    return ConfigError(f"{str(path)!r} is damaged and can't be read ({reason}): copy it again or export another step")


@contextmanager
def _process_group(path: Path) -> Iterator[None]:
    """FSDP1 without a device mesh saves ShardedTensors, which load only on the rank that saved them."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # torch keeps its only idle backend there

    if (match := RANK_FILE.fullmatch(path.name)) is None:
        raise ValueError("its name is not model_world_size_W_rank_R.pt")
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=int(match[2]), world_size=int(match[1]))
    try:
        yield
    finally:
        dist.destroy_process_group()
