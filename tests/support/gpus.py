"""Machines with GPUs that this machine does not have."""

import pytest

from rgtrain.machine import devices
from rgtrain.machine.devices import Gpu


def give_gpus(
    monkeypatch: pytest.MonkeyPatch, *memories_gb: float, name: str = "NVIDIA X", is_mig: bool = False
) -> None:
    """Let this machine seem to have GPUs with these memories in GB, all of them visible.

    Args:
        monkeypatch: The fixture of the test.
        memories_gb: The memory of each GPU.
        name: The product name of all GPUs.
        is_mig: Whether they are MIG slices.
    """
    gpus = tuple(Gpu(f"GPU-{number}", name, memory, is_mig) for number, memory in enumerate(memories_gb))
    monkeypatch.setattr(devices, "_query_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
