"""Command lines that start this project's own commands as processes."""

import sys
from pathlib import Path


def own_command(*words: str) -> list[str]:
    """Return the command line of `rgtrain WORDS`, run by this Python with unbuffered output from any folder."""
    return [sys.executable, "-u", str(Path(__file__).parents[1] / "__main__.py"), *words]
