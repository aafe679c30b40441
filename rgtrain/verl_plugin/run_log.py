"""Everything a run prints goes to its log file; the terminal gets the progress."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rgtrain.verl_plugin.progress import MARK

# What this process says last.
_END = "\0 end of the run's log\n"
# Ray prefixes what its workers print: "(TaskRunner pid=123) text", perhaps in colour.
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@contextmanager
def run_log(path: Path) -> Iterator[TextIO]:
    """Append this process's output and its children's to `path`; marked lines also go to the terminal.

    Works on file descriptors, so it catches Ray's, vLLM's and C libraries' output too. Yields the terminal, for
    what must be seen whatever happens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    with (
        path.open("a", buffering=1, errors="replace") as log,
        os.fdopen(os.dup(saved[0]), "w", buffering=1) as terminal,
    ):
        pump = threading.Thread(target=_pump, args=(reader, log, terminal), daemon=True)
        pump.start()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Children that outlive the run keep the pipe open: its end would be waited for in vain.
            os.write(1, _END.encode())
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
            pump.join(timeout=5)


def _pump(reader: int, log: TextIO, terminal: TextIO) -> None:
    started = time.monotonic()
    with os.fdopen(reader, errors="replace") as lines:
        for line in lines:
            if line.endswith(_END) or log.closed:
                return
            # The run waits for this thread: neither a full disk nor a terminal that is gone may end it.
            with suppress(OSError):
                log.write(line)
            _, mark, text = line.partition(MARK)
            if mark:
                elapsed = int(time.monotonic() - started)
                with suppress(OSError):
                    terminal.write(f"[{elapsed // 60:3}:{elapsed % 60:02}] {_CONTROL.sub('', text).rstrip()}\n")
