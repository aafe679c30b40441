"""The process environment that entry points need."""

import importlib.util
import os
import sys


def require_stack() -> None:
    """Exit with the fix where this Python has none of what the project needs; call it first in an entry point."""
    if importlib.util.find_spec("reasoning_gym") is None:
        sys.exit(
            f"error: {sys.executable} has no reasoning_gym nor what else is needed: run `bash train.sh setup`, "
            f"then `source .venv/bin/activate`"
        )


def fix_hash_seed() -> None:
    """Start this program again with PYTHONHASHSEED=0 unless it runs so already; call it first in an entry point.

    Eight Reasoning Gym datasets make other problems under another hash seed, and Python reads the seed only when it
    starts.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
