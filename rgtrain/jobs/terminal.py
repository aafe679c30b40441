"""Print to a terminal that may be gone."""

import os
import sys
from typing import TextIO


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line to the terminal and ignore an error if the terminal is gone.

    Args:
        line: The text.
        file: The stream, by default standard output.
    """
    file = file or sys.stdout
    try:
        print(line, file=file, flush=True)
    except OSError:
        # Without this, Python flushes the stream again at exit, fails and changes the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
