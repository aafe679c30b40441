"""Find the processors, memory and accelerators that this process may use, without importing torch."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def num_cpus(*, cgroups: Path = _CGROUPS, proc: Path = _PROC) -> int:
    """Return how many processors this process may use, by its affinity mask and its container's quota.

    Args:
        cgroups: The mount point of the control groups.
        proc: The mount point of the proc file system.

    Returns:
        At least 1. A quota of 2.5 processors counts as 2.
    """
    quotas = [float(len(os.sched_getaffinity(0)))]
    for folder in _control_groups("cpu", cgroups, proc):
        words = _words(folder / "cpu.max")
        words = words or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        # Without a limit, the first word is "max" in cgroup version 2 and "-1" in version 1.
        if len(words) == 2 and words[0].isdecimal():
            quotas.append(int(words[0]) / int(words[1]))
    return max(1, int(min(quotas)))


def memory_bytes(*, cgroups: Path = _CGROUPS, proc: Path = _PROC) -> int:
    """Return how much memory this process and its children may use, by the machine's size and the container's limit.

    Args:
        cgroups: The mount point of the control groups.
        proc: The mount point of the proc file system.

    Returns:
        Bytes, without swap.
    """
    total = next(line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    limits = [int(total.split()[1]) << 10]
    for folder in _control_groups("memory", cgroups, proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdecimal()]
    return min(limits)


def _control_groups(controller: str, cgroups: Path, proc: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all its parents, because each of them sets limits."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            # Version 2 has one hierarchy, which is called "unified" on systems that also mount version 1.
            mounts = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            mounts = [path for path in cgroups.glob("*") if controller in path.name.split(",")]
        else:
            continue
        # A container may see its own group as the root, although the name is the host's.
        group = Path(name.lstrip("/"))
        for mount in mounts:
            yield from (mount / folder for folder in (group, *group.parents))


def _words(file: Path) -> list[str]:
    """Return the words in a small file, or an empty list if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def num_gpus() -> int:
    """Return how many CUDA devices this process may use, by nvidia-smi and CUDA_VISIBLE_DEVICES."""
    return len(visible_gpus())


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, each as a value for CUDA_VISIBLE_DEVICES."""
    present = [str(number) for number in range(len(_memories_gb()))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")][: len(present)]


def gpu_memories_gb() -> list[float]:
    """Return the memory of each CUDA device that this process may use, in GB (10^9 bytes)."""
    return _memories_gb()[: num_gpus()]


def _memories_gb() -> list[float]:
    program = shutil.which("nvidia-smi")
    return [_mebibytes(line) * 1.048576e-3 for line in _query_memories(program)] if program else []


@cache
def _query_memories(program: str) -> list[str]:
    """Return nvidia-smi's line for each device. The result is cached, because the program takes up to a second."""
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listing = subprocess.run(query, capture_output=True, text=True, timeout=60)
    return [line for line in listing.stdout.splitlines() if line.strip()] if listing.returncode == 0 else []


def _mebibytes(line: str) -> float:
    # For a device that shares the machine's memory, nvidia-smi prints a word instead of a number.
    try:
        return float(line)
    except ValueError:
        return 0.0


def has_flash_attention() -> bool:
    """Return whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def cpu_dtype() -> str:
    """Return the floating-point type to compute in on this CPU.

    Without bf16 instructions, torch emulates bf16. The backward pass of a 135M model's output layer then took 38 times
    as long as in float32 (AMD EPYC without AVX-512).

    Returns:
        "bfloat16" if the CPU has instructions for it, otherwise "float32".
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "float32"
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def compute_dtype() -> str:
    """Return the floating-point type to compute in on this machine: "bfloat16" on a GPU, otherwise `cpu_dtype()`."""
    return "bfloat16" if num_gpus() else cpu_dtype()
