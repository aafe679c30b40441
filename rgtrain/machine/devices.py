"""The processors, memory, accelerators and attention that this process may use, found without importing torch."""

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
    """Return how many processors this process may use: those of its affinity mask, or fewer by a container's quota.

    Args:
        cgroups: The folder that control groups are mounted in.
        proc: The folder that the kernel's process files are mounted in.

    Returns:
        At least 1. A quota of 2.5 processors counts as 2.
    """
    quotas = [float(len(os.sched_getaffinity(0)))]
    for folder in _groups("cpu", cgroups, proc):
        words = _words(folder / "cpu.max")
        words = words or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        # Without a limit, the first word is "max" in version 2 and "-1" in version 1.
        if len(words) == 2 and words[0].isdecimal():
            quotas.append(int(words[0]) / int(words[1]))
    return max(1, int(min(quotas)))


def memory_bytes(*, cgroups: Path = _CGROUPS, proc: Path = _PROC) -> int:
    """Return how much memory this process and its children may use: the machine's, or less by a container's limit.

    Args:
        cgroups: The folder that control groups are mounted in.
        proc: The folder that the kernel's process files are mounted in.

    Returns:
        Bytes, without swap.
    """
    total = next(line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    limits = [int(total.split()[1]) << 10]
    for folder in _groups("memory", cgroups, proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdecimal()]
    return min(limits)


def _groups(controller: str, cgroups: Path, proc: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of all groups above: each of them limits it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            # Version 2 has one hierarchy, which systems that also mount version 1 call "unified".
            mounts = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            mounts = [path for path in cgroups.glob("*") if controller in path.name.split(",")]
        else:
            continue
        # A container may see its own group as the root although its name is the one outside.
        inside = Path(name.lstrip("/"))
        for mount in mounts:
            yield from (mount / group for group in (inside, *inside.parents))


def _words(file: Path) -> list[str]:
    """Return the words of a small file, none if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def num_gpus() -> int:
    """CUDA devices this process may use: those nvidia-smi lists, or those CUDA_VISIBLE_DEVICES names of them."""
    return len(visible_gpus())


def visible_gpus() -> list[str]:
    """The devices of `num_gpus`, each as CUDA_VISIBLE_DEVICES may name it."""
    present = [str(number) for number in range(len(_memories_gb()))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")][: len(present)]


def gpu_memories_gb() -> list[float]:
    """The memory in GB (10^9 bytes) of each CUDA device this process may use, by number."""
    return _memories_gb()[: num_gpus()]


def _memories_gb() -> list[float]:
    program = shutil.which("nvidia-smi")
    return [_mebibytes(line) * 1.048576e-3 for line in _listed_by(program)] if program else []


@cache
def _listed_by(program: str) -> list[str]:
    """Asked once: the program takes up to a second."""
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listing = subprocess.run(query, capture_output=True, text=True, timeout=60)
    return [line for line in listing.stdout.splitlines() if line.strip()] if listing.returncode == 0 else []


def _mebibytes(line: str) -> float:
    # A device that shares the machine's memory has none of its own to name.
    try:
        return float(line)
    except ValueError:
        return 0.0


def has_flash_attention() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def cpu_dtype() -> str:
    """The floating-point type to compute in on this machine's CPU: "bfloat16" where it has instructions for it.

    Elsewhere torch emulates bf16: the backward pass of a 135M model's output layer took 38 times as long as in
    "float32" (AMD EPYC without AVX-512).
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "float32"
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def compute_dtype() -> str:
    """The floating-point type that models are best run in here: "bfloat16" on a GPU, on a CPU see `cpu_dtype`."""
    return "bfloat16" if num_gpus() else cpu_dtype()
