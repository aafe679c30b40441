"""Read the tensors of a rank file without their data, and run code in the file only if it is trusted."""

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

# Importing this registers DTensors and their placements for loading with weights_only.
from torch.distributed.tensor import DTensor  # noqa: F401

from rgtrain.checkpoints.shards.checkpoint import RANK_FILE
from rgtrain.checkpoints.untrusted_files import first_line, open_regular, printable, quiet_libraries, quoted
from rgtrain.errors import ConfigError

_MAX_LISTED = 8
_MAX_TUPLE_DEPTH = 16
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
    """Load the tensors of a rank file without their data.

    Args:
        path: The rank file.
        trust: Whether code in the file may run.

    Returns:
        Fake tensors by name. torch records the position of each storage in the file. Other values are skipped with a
        warning.

    Raises:
        ConfigError: The file can't be read, or reading it would run code and `trust` is false.
    """
    state = unpickle_without_data(path, trust=trust)
    if not isinstance(state, dict):
        raise ConfigError(
            f"{str(path)!r} holds a {type(state).__name__}, not a mapping of tensors: give a model's rank file"
        )
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(f"{str(path)!r} has {len(state)} entries, but no tensors: give a model's rank file")
    if others := [f"{quoted(name)} ({type(value).__name__})" for name, value in state.items() if name not in tensors]:
        more = f" and {len(others) - _MAX_LISTED} more" if len(others) > _MAX_LISTED else ""
        listed = ", ".join(others[:_MAX_LISTED])
        logger.warning("skipping entries of %s that are not tensors: %s%s", path.name, listed, more)
    return tensors


def check_tuple_depth(content: bytes) -> None:
    """Refuse a pickle with deeply nested tuples, because hashing even a small one can take years.

    Each tuple can hold the previous one twice, and Python hashes it twice. This function tracks only the depth of each
    value.

    Args:
        content: The pickle.

    Raises:
        ValueError: Tuples are nested too deeply.
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
            if depth > _MAX_TUPLE_DEPTH:
                raise ValueError(f"its tuples have more than {_MAX_TUPLE_DEPTH} levels of nesting")
            for made in operation.stack_after:
                stack.append(made if made is pickletools.markobject else depth)


def unpickle_without_data(path: Path, *, trust: bool = False) -> object:
    """Load an object that torch.save wrote, with fake tensors whose data stays in the file."""
    group = _process_group(path) if trust else nullcontext()
    try:
        # In this mode torch allocates no memory and records the position of each storage in the file.
        with FakeTensorMode(), quiet_libraries(), group, open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if needs := re.findall(r"GLOBAL (\S+)", str(error)):
            raise ConfigError(
                f"{str(path)!r} needs {printable(needs[0], max_characters=100)} to be read, but only plain tensors and "
                "DTensors are read, so that no code runs. If you trust its author, --trust-checkpoint lets it run. "
                "Otherwise save with FSDP2 (actor_rollout_ref.actor.strategy=fsdp2), or with FSDP1 on a device mesh as "
                "verl does"
            ) from None
        raise _damaged(path, error) from None
    except Exception as error:  # A damaged file can raise any exception.
        raise _damaged(path, error) from None


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Convert errors of reading a damaged file to a ConfigError that names the file."""
    try:
        yield
    except _DAMAGE as error:
        raise error if isinstance(error, ConfigError) else _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = first_line(error)
    return ConfigError(f"{str(path)!r} is damaged and can't be read ({reason}): copy it again or use another step")


@contextmanager
def _process_group(path: Path) -> Iterator[None]:
    """Pretend to be the rank that saved the file, because ShardedTensors (FSDP1 without a mesh) load only there."""
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
