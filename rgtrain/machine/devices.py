"""Find the processors, memory and accelerators that this process may use, without importing torch."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Gpu:
    """A CUDA device, which is a whole GPU or a MIG slice of one.

    Attributes:
        identifier: Its UUID.
        name: Its product name, such as "NVIDIA A10".
        memory_gb: Its memory in GB (10^9 bytes); 0 if nvidia-smi does not report it.
        is_mig: Whether it is a MIG slice.
    """

    identifier: str
    name: str
    memory_gb: float
    is_mig: bool = False


def num_gpus() -> int:
    """Return how many CUDA devices this process may use, by nvidia-smi and CUDA_VISIBLE_DEVICES."""
    return len(usable_gpus())


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, each as a value for CUDA_VISIBLE_DEVICES."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is None and not any(gpu.is_mig for gpu in present_gpus()):
        return [str(number) for number in range(num_gpus())]
    return [word for word, _ in _visible()]


def gpu_memories_gb() -> list[float]:
    """Return the memory of each CUDA device that this process may use, in GB (10^9 bytes)."""
    return [gpu.memory_gb for gpu in usable_gpus()]


def usable_gpus() -> list[Gpu]:
    """Return the CUDA devices that this process may use, in the order of CUDA_VISIBLE_DEVICES."""
    return [gpu for _, gpu in _visible()]


def present_gpus() -> list[Gpu]:
    """Return all CUDA devices of this machine that nvidia-smi lists. A GPU in MIG mode counts as its slices."""
    return list(_query_gpus())


def _visible() -> list[tuple[str, Gpu]]:
    """Return the devices that CUDA_VISIBLE_DEVICES names, or all, each with the word that names it."""
    present, visible = present_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [(gpu.identifier, gpu) for gpu in present]
    found: list[tuple[str, Gpu]] = []
    for word in (part.strip() for part in visible.split(",")):
        gpu = _named_gpu(word, present)
        # CUDA ignores a device that does not exist, and all words after it.
        if gpu is None:
            break
        if gpu not in (one for _, one in found):
            found.append((word, gpu))
    return found


def _named_gpu(word: str, present: Sequence[Gpu]) -> Gpu | None:
    if word.isdecimal():
        return present[int(word)] if int(word) < len(present) else None
    # A UUID may be shortened, as long as it is unique.
    matches = [gpu for gpu in present if gpu.identifier.startswith(word)] if word.startswith(("GPU-", "MIG-")) else []
    if len(matches) == 1:
        return matches[0]
    # nvidia-smi may list no slices inside a container.
    return Gpu(word, "MIG device", 0.0, is_mig=True) if word.startswith("MIG-") and present else None


@cache
def _query_gpus() -> tuple[Gpu, ...]:
    """Run nvidia-smi. The result is cached, because the program takes up to a second."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=uuid,memory.total,mig.mode.current,name", "--format=csv,noheader,nounits"]
    rows = [[word.strip() for word in line.split(",", 3)] for line in _output_lines(query)]
    whole = [
        (uuid, Gpu(uuid, name, _mebibytes(memory) * 1.048576e-3), mode == "Enabled")
        for uuid, memory, mode, name in (row for row in rows if len(row) == 4)
    ]
    if not any(is_split for _, _, is_split in whole):
        return tuple(gpu for _, gpu, _ in whole)
    slices = _mig_slices(_output_lines([program, "-L"]))
    found: list[Gpu] = []
    for uuid, gpu, is_split in whole:
        found += slices.get(uuid, []) if is_split else [gpu]
    return tuple(found)


def _output_lines(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _mig_slices(listing: Iterable[str]) -> dict[str, list[Gpu]]:
    """Read the MIG slices of each GPU from the lines of `nvidia-smi -L`. A slice's profile, 3g.20gb, has its memory."""
    slices: dict[str, list[Gpu]] = {}
    of_gpu: list[Gpu] = []
    for line in listing:
        if gpu := re.match(r"GPU \d+: .* \(UUID: (\S+)\)", line):
            of_gpu = slices.setdefault(gpu[1], [])
        elif mig := re.match(r"\s+MIG (\S*?(\d+)gb\S*)\s+Device .*\(UUID: (\S+)\)", line):
            of_gpu.append(Gpu(mig[3], f"MIG {mig[1]}", float(mig[2]), is_mig=True))
    return slices


def _mebibytes(word: str) -> float:
    # For a device that shares the machine's memory, nvidia-smi prints a word instead of a number.
    try:
        return float(word)
    except ValueError:
        return 0.0


def is_installed(distribution: str) -> bool:
    """Return whether a distribution is installed.

    Its name says more than that of a module. For example, flash-attn and flash-attn-4 are both imported as flash_attn.
    """
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


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
    """Return the floating-point type to compute in on this machine.

    Returns:
        "bfloat16" on GPUs from compute capability 8.0 (Ampere) up, "float16" if one is older, and `cpu_dtype()` without
        a GPU.
    """
    if not num_gpus():
        return cpu_dtype()
    return "float16" if any(capability < 8.0 for capability in _compute_capabilities()) else "bfloat16"


@cache
def _compute_capabilities() -> tuple[float, ...]:
    """Return the compute capability of each present GPU; empty if nvidia-smi does not report it."""
    program = shutil.which("nvidia-smi")
    lines = _output_lines([program, "--query-gpu=compute_cap", "--format=csv,noheader"]) if program else []
    return tuple(float(line) for line in lines if re.fullmatch(r"\s*\d+\.\d+\s*", line))
