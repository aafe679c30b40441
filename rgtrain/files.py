"""Atomic writes."""

import errno
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, content: str | Iterable[bytes]) -> None:
    """Write `content` to `path` atomically and flush it to disk.

    If the process is killed during the write, `path` keeps its old content or has the new content in full. A temporary
    file `.NAME-XXXXXXXX` may then remain in the same folder; `remove_leftovers` removes it.

    Args:
        path: The file, which is created or replaced.
        content: Text, which is encoded as UTF-8, or chunks of bytes.
    """
    chunks = [content.encode("utf-8", "backslashreplace")] if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp sets mode 0600, but other users may need to read the file.
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files that interrupted `write_atomically` calls left in `folder`.

    No other process may write these files at the same time.

    Args:
        folder: The folder that holds the files.
        names: Names of the files that were being written.
    """
    # mkstemp appends eight characters.
    pattern = re.compile(rf"\.(?:{'|'.join(map(re.escape, names))})-[a-z0-9_]{{8}}")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
