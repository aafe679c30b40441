"""Set up each process of Ray before its first task."""

import os

from rgtrain.jobs.watchdog import print_stacks_on_request

# The packages of the configuration's `plugins`, separated by spaces. Ray passes it to workers on every machine.
PLUGINS_VARIABLE = "RGTRAIN_PLUGINS"


def set_up_worker() -> None:
    """Let the watchdog print this process's stacks, and import the plugins of the run."""
    print_stacks_on_request()
    if names := os.environ.get(PLUGINS_VARIABLE, "").split():
        # Only runs with plugins wait for the import of Reasoning Gym, which takes a second.
        from rgtrain.problems.plugins import import_plugins

        import_plugins(names)
