"""Find the processes of a run that a test has started."""

import contextlib
import subprocess
from pathlib import Path

from rgtrain.machine.orphan_cleanup import RUN_ID


def run_environment(pid: int) -> dict[str, str]:
    """Return the environment variables that all processes of a run share.

    Args:
        pid: The id of the run's first process. It sets some variables itself, which /proc only shows for its children.

    Returns:
        The environment variables of a child with the run's mark; an empty dict as long as there is none.
    """
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    for child in children:
        # The child may have just ended.
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{child}/environ").read_text().split("\0")
            found = dict(line.split("=", 1) for line in lines if "=" in line)
            if RUN_ID in found:
                return found
    return {}
