"""Command lines that start this project's own commands as processes."""

import os
import sys

from rgtrain.paths import IS_INSTALLED, PROJECT_ROOT


def own_command(*words: str) -> list[str]:
    """Return the command line of `rgtrain WORDS`, run by this Python with unbuffered output."""
    # -P keeps the current folder off the import path: a file named random.py there would shadow Python's own.
    return [sys.executable, "-P", "-u", "-m", "rgtrain", *words]


def own_environment() -> dict[str, str]:
    """Return the environment for `own_command`: in a working tree the package need not be installed."""
    if IS_INSTALLED:
        return dict(os.environ)
    path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
