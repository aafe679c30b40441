"""Set up the process environment that entry points need."""

import importlib.util
import os
import sys
from collections.abc import Collection, Mapping

from rgtrain.errors import ConfigError
from rgtrain.machine.devices import num_cpus
from rgtrain.paths import IS_INSTALLED, setup_command

# Processes that make or judge problems inherit only these variables, and so no credentials.
_INHERITED_WHEN_CONFINED = (
    *("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH"),
    # orphan_cleanup.RUN_ID
    "RGTRAIN_RUN_ID",
    # These decide how linear algebra rounds, and some problems contain its results.
    *("MKL_CBWR", "NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
)


def cpu_environment() -> dict[str, str]:
    """Return environment variables for computing on a CPU that other processes may use too.

    Set them before torch is imported. Values that the user has set are kept.

    Returns:
        The variables by name.
    """
    wanted = {
        # Libraries would count all of the machine's processors, and Ray would give each worker one thread.
        "OMP_NUM_THREADS": str(num_cpus()),
        # Let waiting threads sleep. On a busy machine, a spinning thread takes the processor from the thread that it
        # waits for. On idle cores, sleeping costs up to a quarter of a step's time (benchmarks/RESULTS.md).
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "GOMP_SPINCOUNT": "0",
    }
    return unless_set(wanted)


def unless_set(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables in `wanted`, with the user's values for those that the user has set."""
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def confined_environment() -> dict[str, str]:
    """Return the environment variables of a process that makes or judges problems, without credentials.

    Returns:
        The variables by name. A confined process cannot start threads, so libraries use one.
    """
    return {
        **{name: os.environ[name] for name in _INHERITED_WHEN_CONFINED if name in os.environ},
        **{name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
    }


def require_stack() -> None:
    """Exit and name the fix if this Python lacks the project's packages. Call it first in an entry point."""
    if importlib.util.find_spec("reasoning_gym") is None:
        sys.exit(
            f"error: {sys.executable} lacks the packages that this project needs, such as reasoning_gym; "
            f"run `{setup_command()}`" + ("" if IS_INSTALLED else ", then `source .venv/bin/activate`")
        )


def fix_hash_seed() -> None:
    """Restart this program with PYTHONHASHSEED=0 unless it is set already. Call it first in an entry point.

    Eight Reasoning Gym datasets make different problems under a different hash seed, and Python reads the seed only at
    its start.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def check_hash_seed(dataset_names: Collection[str]) -> None:
    """Raise ConfigError if this process would make other problems of `dataset_names`, which depend on the hash seed."""
    if dataset_names and sys.flags.hash_randomization:
        raise ConfigError(
            f"the problems of {', '.join(dataset_names)} differ from process to process, because Python was started "
            "without a hash seed; set the environment variable PYTHONHASHSEED=0 before Python starts"
        )
