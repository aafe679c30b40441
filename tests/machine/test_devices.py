"""The processors and memory that this process may use, and the floating-point type for them."""

import os
import platform
from pathlib import Path

import pytest
import torch
from support.gpus import give_gpus

from rgtrain.machine import devices
from rgtrain.machine.devices import compute_dtype, cpu_dtype, memory_bytes, num_cpus


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch detects bf16 instructions on x86 only")
def test_bf16_is_chosen_exactly_if_torch_finds_instructions_for_it():
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert cpu_dtype() == ("bfloat16" if has_bf16 else "float32")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [("9.0\n8.0\n", "bfloat16"), ("8.6\n7.5\n", "float16"), ("[N/A]\n", "bfloat16"), ("", "bfloat16")],
)
def test_a_gpu_computes_in_bf16_on_every_cpu_unless_it_lacks_the_instructions(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(devices, "num_gpus", lambda: 1)
    monkeypatch.setattr(devices.shutil, "which", lambda program: program)
    monkeypatch.setattr(devices, "_output_lines", lambda command: capabilities.splitlines())
    monkeypatch.setattr(devices, "_compute_capabilities", devices._compute_capabilities.__wrapped__)
    assert compute_dtype() == dtype


# The lines of /proc/self/cgroup and the files of the groups. The limits are 1 processor and 3,000,000 bytes.
CONTAINERS = {
    "version 2, seen from inside": (["0::/"], {"cpu.max": "100000 100000", "memory.max": "3000000"}),
    "version 2, a group above": (
        ["0::/job/step/task"],
        {"job/cpu.max": "150000 100000", "job/step/cpu.max": "max 100000", "job/step/memory.max": "3000000"},
    ),
    "version 2, beside version 1": (["1:name=systemd:/", "0::/a"], {"unified/a/cpu.max": "50000 100000"}),
    "version 1, in Docker": (
        ["4:memory:/docker/0123", "2:cpu,cpuacct:/docker/0123"],
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "3000000",
        },
    ),
}
UNLIMITED = {
    "no control groups": ([], {}),
    "version 2": (["0::/a"], {"a/cpu.max": "max 100000", "a/memory.max": "max"}),
    "version 1": (
        ["4:memory:/a", "2:cpu:/a"],
        {
            "cpu/a/cpu.cfs_quota_us": "-1",
            "cpu/a/cpu.cfs_period_us": "100000",
            "memory/a/memory.limit_in_bytes": "9223372036854771712",
        },
    ),
}


def machine(folder: Path, lines: list[str], files: dict[str, str]) -> dict[str, Path]:
    """Write the system files of a machine with 8 GB of memory."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text("MemTotal:        7812500 kB\nMemFree:           12345 kB\n")
    (folder / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    for name, content in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return {"cgroups": folder / "cgroup", "proc": folder / "proc"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_limits_of_a_container_are_respected(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    places = machine(tmp_path, *CONTAINERS[name])
    assert num_cpus(**places) == 1
    assert memory_bytes(**places) == (3_000_000 if "memory" in str(CONTAINERS[name]) else 8_000_000_000)


@pytest.mark.parametrize("name", UNLIMITED)
def test_without_limits_all_processors_and_memory_may_be_used(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    places = machine(tmp_path, *UNLIMITED[name])
    assert (num_cpus(**places), memory_bytes(**places)) == (3, 8_000_000_000)


def test_an_affinity_mask_limits_a_larger_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert num_cpus(**machine(tmp_path, ["0::/"], {"cpu.max": "700000 100000"})) == 2


def test_this_machine_has_a_processor_and_memory():
    assert 1 <= num_cpus() <= len(os.sched_getaffinity(0))
    assert memory_bytes() > 1 << 28


@pytest.mark.parametrize(
    ("visible", "memories"),
    [
        (None, [24, 48, 80]),
        ("2,0", [80, 24]),
        (" 1 , 2", [48, 80]),
        ("GPU-1,GPU-0", [48, 24]),
        ("1,1", [48]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        # CUDA ignores all words after one that names no device.
        ("0,7,1", [24]),
        ("0,-1,1", [24]),
        ("GPU-", []),
    ],
)
def test_gpus_are_those_that_cuda_makes_visible(monkeypatch, visible, memories):
    give_gpus(monkeypatch, 24, 48, 80)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.gpu_memories_gb() == memories
    assert devices.num_gpus() == len(devices.visible_gpus()) == len(memories)


def test_a_visible_gpu_is_named_as_the_user_named_it(monkeypatch):
    give_gpus(monkeypatch, 24, 48, 80)
    assert devices.visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2, 0")
    assert devices.visible_gpus() == ["GPU-2", "0"]


NVIDIA_SMI = """#!/bin/sh
case "$1" in
-L) cat <<END
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
  MIG 3g.20gb     Device  0: (UUID: MIG-11)
  MIG 1g.5gb+me   Device  1: (UUID: MIG-22)
GPU 1: NVIDIA GB10 (UUID: GPU-bb)
END
;;
*) cat <<END
GPU-aa, 40960, Enabled, NVIDIA A100-SXM4-40GB
GPU-bb, [N/A], [N/A], NVIDIA GB10
END
;;
esac
"""


def test_a_gpu_in_mig_mode_counts_as_its_slices(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gpus = devices._query_gpus.__wrapped__()
    assert [(gpu.identifier, gpu.memory_gb, gpu.is_mig) for gpu in gpus] == [
        ("MIG-11", 20, True),
        ("MIG-22", 5, True),
        ("GPU-bb", 0, False),
    ]
    monkeypatch.setattr(devices, "_query_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.visible_gpus() == ["MIG-11", "MIG-22", "GPU-bb"]
    # A slice that nvidia-smi does not list may exist nevertheless.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-33")
    assert devices.gpu_memories_gb() == [0]


def test_a_machine_without_nvidia_smi_has_no_gpus(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert devices._query_gpus.__wrapped__() == ()
