"""Folders of the project, for a working tree and for an installed wheel.

A wheel carries configs/ and evaluation/ inside the package (setup.py copies them there). A command of an installed
wheel then treats the current folder as the project's root: models/, runs/ and outputs/ are written there.
"""

import shlex
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CARRIED = _PACKAGE / "carried"

IS_INSTALLED = _CARRIED.is_dir()
PROJECT_ROOT = Path.cwd() if IS_INSTALLED else _PACKAGE.parent
# The folder of configs/ and evaluation/.
SHIPPED = _CARRIED if IS_INSTALLED else PROJECT_ROOT
CONFIGS = SHIPPED / "configs"


def project_path(path: str | Path) -> Path:
    """Return the path of a file that a configuration names.

    Args:
        path: Absolute, beginning with `~`, or relative to the project's root.

    Returns:
        The absolute path. A file that the root lacks is the wheel's own, if the wheel carries one of that name.
    """
    path = Path(path).expanduser()
    own, shipped = PROJECT_ROOT / path, SHIPPED / path
    return shipped if shipped.exists() and not own.exists() else own


def path_from_here(path: str | Path) -> Path:
    """Return the path of a file that a command line names.

    Args:
        path: Absolute, beginning with `~`, or relative to the current folder or to the project's root.

    Returns:
        `path` in the current folder if it exists there, else `project_path(path)` if that exists, else `path` as given.
    """
    given = Path(path).expanduser()
    if given.exists():
        return given
    found = project_path(given)
    return found if found.exists() else given


def setup_command() -> str:
    """Return the shell command that installs the project's dependencies, for error messages."""
    if not IS_INSTALLED:
        return "bash train.sh setup"
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    return f"{pip} 'rgtrain[cpu]' && {pip} --no-deps -r {shlex.quote(str(SHIPPED / 'requirements-cpu-nodeps.txt'))}"
