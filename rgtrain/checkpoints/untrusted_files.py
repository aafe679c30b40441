"""Read files of a checkpoint from an unknown author: only regular files inside its folder, up to a maximum size.

An entry of a checkpoint folder could be a link to a private file, a FIFO without a writer, an endless device or an
oversized file. Each is refused with an error message of one line.
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

_MAX_REASON_CHARACTERS = 200
_MAX_NAME_CHARACTERS = 120
# Configs of models with vision and audio parts have 6 levels.
_MAX_DEPTH = 32
# torch warns for each rank that a mesh was loaded without process groups, which an export does on purpose.
_NOISY_LOGGERS = ("torch.distributed.device_mesh", "torch._subclasses.fake_tensor", "transformers")


def open_regular(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """Open a regular file for reading. Never block, even if the path names a FIFO.

    Args:
        path: The file, or a link to it.
        inside: The folder that must contain the link's target; by default, the folder of `path`. Snapshots in the
            hub's cache link to files in `blobs/`, which counts as inside.

    Returns:
        The open file.

    Raises:
        ConfigError: `path` leads out of `inside`, is not a regular file, or can't be read.
        FileNotFoundError: There is no such file.
    """
    try:
        root = Path(os.path.realpath(path.parent if inside is None else inside))
        real = Path(os.path.realpath(path, strict=True))
        if not any(real.is_relative_to(folder) for folder in (root, *_hub_blobs(root))):
            raise ConfigError(
                f"{str(path)!r} is a link to {str(real)!r}, outside of {str(root)!r}: replace the link by the file, or "
                "remove it"
            )
        # Check the type before opening, because opening a device can have side effects.
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
            raise ConfigError(f"{str(path)!r} is a broken link: replace it by the file") from None
        raise
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r} ({error.strerror or error}): make it readable") from None


def read_bounded(path: Path, *, max_bytes: int, inside: Path | None = None) -> bytes:
    """Return the content of `path`, opened by `open_regular`. Raise ConfigError if it exceeds `max_bytes`."""
    with open_regular(path, inside=inside) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise ConfigError(f"can't read {str(path)!r} ({error.strerror or error}): copy it again") from None
    if len(content) > max_bytes:
        raise ConfigError(
            f"{str(path)!r} has {max(size, len(content))} bytes, but at most {max_bytes} are allowed: replace it by "
            "the model's own file"
        )
    return content


def read_json_object(path: Path, *, max_bytes: int, inside: Path | None = None) -> dict[str, Any]:
    """Return the JSON object in `path`, read by `read_bounded`. Raise ConfigError if there is none."""
    return parse_json_object(read_bounded(path, max_bytes=max_bytes, inside=inside), path)


def parse_json_object(content: bytes, path: Path) -> dict[str, Any]:
    """Parse `content`, read from `path`, as a JSON object. Raise ConfigError if it is not one."""
    try:
        parsed = json.loads(content, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is not valid JSON ({first_line(error)}): restore or replace it") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{str(path)!r} holds a JSON {type(parsed).__name__}, not an object: restore or replace it")
    level, depth = [parsed], 0
    while level := [child for part in level for child in _children(part)]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ConfigError(f"{str(path)!r} has more than {_MAX_DEPTH} levels of nesting: restore or replace it")
    return parsed


def _children(part: Any) -> Iterable[Any]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a duplicate key")
    return found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, printable and shortened, for use in a one-line message."""
    return printable(
        (str(error).strip().splitlines() or [type(error).__name__])[0], max_characters=_MAX_REASON_CHARACTERS
    )


def quoted(name: object) -> str:
    """Quote `name` for a message: make it printable, and shorten it in the middle if it is long."""
    text = repr(name if isinstance(name, str) else str(name)[:_MAX_NAME_CHARACTERS])
    half = _MAX_NAME_CHARACTERS // 2
    return text if len(text) <= _MAX_NAME_CHARACTERS else f"{text[:half]}...{text[-half:]}"


def printable(text: str, *, max_characters: int) -> str:
    """Replace unprintable characters of `text` by `?`, and cut it to `max_characters`."""
    cut = text[: max_characters + 1]
    shown = "".join(character if character.isprintable() else "?" for character in cut[:max_characters])
    return shown + ("..." if len(cut) > max_characters else "")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence torch's and transformers' warnings about a file, so that an error stays one line."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
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
    raise ConfigError(f"{str(path)!r} is {kind}, not a regular file: replace it by the file, or remove it")


def _hub_blobs(root: Path) -> tuple[Path, ...]:
    """Return the folder that `root` links to if it is a snapshot in the hub's cache."""
    snapshots, model = root.parent, root.parent.parent
    return (model / "blobs",) if snapshots.name == "snapshots" and model.name.startswith("models--") else ()
