"""Write all output of a run to its log file, and only the progress lines to the terminal."""

import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from rgtrain.provenance import mask_secrets
from rgtrain.training.lifecycle.console import PLAIN_MARK, mark

_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
# Longer lines are handled in pieces, so that output without line ends does not fill the memory.
_MAX_LINE_CHARS = 1 << 20


@contextmanager
def run_log(path: Path) -> Iterator[TextIO]:
    """Append the output of this process and its children to `path`. Marked lines also go to the terminal.

    File descriptors are redirected, so the log includes the output of Ray, vLLM and C libraries. Secrets that
    `mask_secrets` recognises are masked.

    Args:
        path: The log file. Its folder is created if necessary.

    Yields:
        The terminal, for output that must not go through the log.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        # Printing must not fail on any text, such as half of a surrogate pair.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    saved = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    # Random and not in the environment, so that no other text can end the log.
    end = f"\0{secrets.token_hex(16)}\n"
    log = path.open("a", buffering=1, encoding="utf-8", errors="replace")
    terminal = os.fdopen(os.dup(saved[0]), "w", buffering=1, errors="replace")
    pump = threading.Thread(target=_pump, args=(reader, log, terminal, end), daemon=True)
    pump.start()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Children that outlive the run keep the pipe open, so end-of-file may never come.
        os.write(1, end.encode())
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)
        pump.join(timeout=5)
        _close(log, f"warning: {path} is incomplete")
        _close(terminal)


def _pump(reader: int, log: TextIO, terminal: TextIO, end: str) -> None:
    started = time.monotonic()
    marker = mark()
    with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(_MAX_LINE_CHARS):
            is_end = line.endswith(end)
            line = line.removesuffix(end)
            # Ray prefixes the output of its workers: "(TaskRunner pid=123) text", perhaps in colour.
            before, found, text = line.partition(marker)
            text = mask_secrets(text.replace(marker, PLAIN_MARK))
            # Neither a full disk nor a closed terminal may end the run. The log holds only the plain mark, because a
            # program that prints the log could otherwise forge progress lines.
            with suppress(OSError, ValueError):
                log.write(f"{mask_secrets(before)}{PLAIN_MARK if found else ''}{text}")
            if found:
                elapsed = int(time.monotonic() - started)
                with suppress(OSError, ValueError):
                    terminal.write(f"[{elapsed // 60:3}:{elapsed % 60:02}] {_CONTROL.sub('', text).rstrip()}\n")
            if is_end:
                return


def _close(file: TextIO, warning: str = "") -> None:
    """Close a file whose disk may be full or whose terminal may be closed."""
    try:
        file.close()
    except OSError as error:
        if warning:
            with suppress(OSError):
                print(f"{warning}: {error.strerror}", file=sys.stderr)
