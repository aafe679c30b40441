"""The process environment that entry points need."""

import importlib.util
import os
import sys
from collections.abc import Mapping

from rgtrain.machine.devices import num_cpus


def cpu_environment() -> dict[str, str]:
    """Return the variables for a process that computes on a CPU which other processes may be using too.

    Set them before torch is imported. Values that the user has set stay.
    """
    wanted = {
        # Libraries count the machine's processors, and Ray would give each worker one thread.
        "OMP_NUM_THREADS": str(num_cpus()),
        # A thread that waits for the others sleeps. If it spins on a busy machine, it takes the processor from the
        # thread that it waits for. On quiet cores, sleeping costs up to a quarter of a step (benchmarks/RESULTS.md).
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "GOMP_SPINCOUNT": "0",
    }
    return unless_set(wanted)


def unless_set(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables with the values in `wanted`, or with those that the user has set."""
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


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
