"""Find the processes of a run that a test has started."""

import subprocess
from pathlib import Path


def run_environment(pid: int) -> dict[str, str]:
    """Return the environment variables that all processes of a run share.

    Args:
        pid: The id of the run's first process. It sets some variables itself, which /proc only shows for its children.

    Returns:
        The environment variables of its first child; an empty dict as long as it has none.
    """
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    if not children:
        return {}
    lines = Path(f"/proc/{children[0]}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)
