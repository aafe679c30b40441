"""The process environment that entry points need."""

import os
import sys


def fix_hash_seed() -> None:
    """Start this program again with PYTHONHASHSEED=0 unless it runs so already; call it first in an entry point.

    Eight Reasoning Gym datasets make other problems under another hash seed, and Python reads the seed only when it
    starts.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
