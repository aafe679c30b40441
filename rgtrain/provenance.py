"""What a run was made by: enough to make it again."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rgtrain.paths import PROJECT_ROOT

FILE = "provenance.jsonl"


def record(run_dir: Path) -> None:
    """Add to `run_dir`/provenance.jsonl a line for this start: a run that is continued has several."""
    with (run_dir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(provenance()) + "\n")


def provenance() -> dict[str, Any]:
    """The command line, the project's commit and whether files differ from it, Python, and every package's version."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([sys.executable, *sys.argv]),
        "working_directory": str(Path.cwd()),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _git("status", "--porcelain", "--untracked-files=no"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def commit() -> str | None:
    """The project's commit, marked where the working tree differs from it; None outside a git checkout."""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    """None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(PROJECT_ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
