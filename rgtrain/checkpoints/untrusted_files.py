"""Read the files of a checkpoint that somebody else may have written: regular files inside its folder, of bounded size.

A file in a checkpoint can be a link to a private file, a FIFO that never answers, a device that never ends, or far
larger than anything that belongs there. Each is refused with one line.
"""

import json
import logging
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rgtrain.errors import ConfigError

_MOST_REASON_CHARACTERS = 200
_MOST_NAME_CHARACTERS = 120
# Configs of models with vision and audio parts nest 6 deep.
_MOST_DEPTH = 32
# torch warns per rank that a mesh was loaded without its process groups, which is the point of an export.
_LOUD_LOGGERS = ("torch.distributed.device_mesh", "torch._subclasses.fake_tensor", "transformers")


def open_regular(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """Open the regular file `path` for reading, without ever waiting for one that has no data.

    Args:
        path: The file. It may be a link.
        inside: The folder that the file itself must lie in; by default, the folder of `path`. A snapshot in the hub's
            cache keeps its files as links into `blobs/`, which counts as inside.

    Raises:
        ConfigError: `path` leads out of `inside`, is no regular file, or can't be read.
        FileNotFoundError: There is no such file.
    """
    try:
        root = Path(os.path.realpath(path.parent if inside is None else inside))
        real = Path(os.path.realpath(path, strict=True))
        if not any(real.is_relative_to(folder) for folder in (root, *_hub_blobs(root))):
            raise ConfigError(
                f"{str(path)!r} is a link to {str(real)!r}, outside of {str(root)!r}: "
                "only files inside a checkpoint's folder are read; put the file itself there, or remove the link"
            )
        # A device can act on being opened, so its kind is looked up first.
        _check_regular(path, os.lstat(real).st_mode)
        handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_regular(path, os.fstat(handle).st_mode)
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(f"{str(path)!r} is a link to a file that is not there: replace it by the file") from None
        raise
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r} ({error.strerror or error}): make it readable") from None


def read_bounded(path: Path, *, most_bytes: int, inside: Path | None = None) -> bytes:
    """Return the content of `path`, opened as by `open_regular`. Raises ConfigError if it exceeds `most_bytes`."""
    with open_regular(path, inside=inside) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            content = file.read(most_bytes + 1)
        except OSError as error:
            raise ConfigError(f"can't read {str(path)!r} ({error.strerror or error}): copy it again") from None
    if len(content) > most_bytes:
        raise ConfigError(
            f"{str(path)!r} has {max(size, len(content))} bytes, and such a file has {most_bytes} at most: "
            "it does not belong to a checkpoint, so replace it"
        )
    return content


def read_json_object(path: Path, *, most_bytes: int, inside: Path | None = None) -> dict[str, Any]:
    """Return the JSON object in `path`, read as by `read_bounded`. Raises ConfigError if there is none."""
    return parse_json_object(read_bounded(path, most_bytes=most_bytes, inside=inside), path)


def parse_json_object(content: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object that `content` of the file `path` holds. Raises ConfigError if it holds none."""
    try:
        parsed = json.loads(content, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is no JSON ({first_line(error)}): restore or replace it") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{str(path)!r} holds a JSON {type(parsed).__name__}, not an object: restore or replace it")
    level, depth = [parsed], 0
    while level := [child for part in level for child in _children(part)]:
        depth += 1
        if depth > _MOST_DEPTH:
            raise ConfigError(f"{str(path)!r} nests its values more than {_MOST_DEPTH} deep: restore or replace it")
    return parsed


def _children(part: Any) -> Iterable[Any]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice in one object")
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error's message, printable and shortened, for use inside a message of one line."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0], most=_MOST_REASON_CHARACTERS)


def quoted(name: object) -> str:
    """`name` quoted for a message: printable, and shortened in the middle if it is long."""
    text = repr(name if isinstance(name, str) else str(name)[:_MOST_NAME_CHARACTERS])
    half = _MOST_NAME_CHARACTERS // 2
    return text if len(text) <= _MOST_NAME_CHARACTERS else f"{text[:half]}...{text[-half:]}"


def printable(text: str, *, most: int) -> str:
    """`text` with `?` for characters that can't be shown, cut to `most` characters."""
    cut = text[: most + 1]
    shown = "".join(character if character.isprintable() else "?" for character in cut[:most])
    return shown + ("..." if len(cut) > most else "")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence torch's and transformers' own warnings about a file, so that a refusal stays one line."""
    loggers = [logging.getLogger(name) for name in _LOUD_LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode), "of an unknown kind")
    raise ConfigError(f"{str(path)!r} is {kind}, not a regular file: put the file itself there, or remove it")


def _hub_blobs(root: Path) -> tuple[Path, ...]:
    """The folder of the hub's cache that a snapshot in `root` links to, if `root` is one."""
    snapshots, model = root.parent, root.parent.parent
    return (model / "blobs",) if snapshots.name == "snapshots" and model.name.startswith("models--") else ()
