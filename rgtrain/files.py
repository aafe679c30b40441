"""Atomic writes."""

import errno
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, content: str | Iterable[bytes]) -> None:
    """Replace `path` by `content` (text as UTF-8) atomically; the content is on disk when this returns.

    If this process ends meanwhile, `path` holds its old or its new content. A file `.NAME-XXXXXXXX` beside it may be
    left, which `remove_leftovers` removes.
    """
    parts = [content.encode("utf-8", "backslashreplace")] if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would keep colleagues from reading it.
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files of interrupted `write_whole` calls for files called `names` in `folder`.

    No other process may be writing these files.
    """
    # Eight characters, as mkstemp draws them.
    pattern = re.compile(rf"\.(?:{'|'.join(map(re.escape, names))})-[a-z0-9_]{{8}}")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the file or folder on disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
