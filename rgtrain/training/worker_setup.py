"""Set up each process of Ray before its first task."""

import os
import sys
from collections.abc import Sequence

from rgtrain.jobs.watchdog import print_stacks_on_request
from rgtrain.machine.garbage_collection import collect_rarely

# The packages of the configuration's `plugins`, separated by spaces, and the folders in which the trainer's process
# looks for modules. Ray passes both to workers on every machine.
_PLUGINS, _FOLDERS = "RGTRAIN_PLUGINS", "RGTRAIN_PLUGIN_FOLDERS"
# Set for workers that call `collect_as_usual` once they have started.
COLLECT_RARELY = "RGTRAIN_COLLECT_RARELY"


def plugins_environment(plugins: Sequence[str]) -> dict[str, str]:
    """Return the environment variables by which `set_up_worker` imports the plugins of a configuration."""
    if not plugins:
        return {}
    return {_PLUGINS: " ".join(plugins), _FOLDERS: os.pathsep.join(map(os.path.abspath, sys.path))}


def set_up_worker() -> None:
    """Let the watchdog print this process's stacks, and import the plugins of the run."""
    print_stacks_on_request()
    if COLLECT_RARELY in os.environ:
        collect_rarely()
    names = os.environ.get(_PLUGINS, "").split()
    if not names:
        return
    # A package may lie in the folder of the training script. Ray adds that folder only later.
    sys.path += [folder for folder in os.environ.get(_FOLDERS, "").split(os.pathsep) if folder not in sys.path]
    # Only runs with plugins wait for the import of Reasoning Gym, which takes a second.
    from rgtrain.problems.plugins import import_plugins

    import_plugins(names)
