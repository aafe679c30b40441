"""A platform for verl on machines without an accelerator."""

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import platform_base


class CpuPlatform(platform_base.PlatformBase):
    """A platform with one device per Ray worker, which is always the machine's CPU."""

    device_name = "cpu"
    vendor_name = "generic"
    device_module: ModuleType = torch.cpu

    def is_available(self) -> bool:
        """Return True, because every machine has a CPU."""
        return True

    def current_device(self) -> Any:
        """Return torch's CPU device. torch would take an index of 0 for an accelerator."""
        return torch.device("cpu")

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def set_device(self, device_index: int) -> None:
        """Do nothing, because there is only one device."""
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        """Do nothing, because a CPU computes synchronously."""
        return None

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generator."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch's generator."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """Do nothing, because there is no device allocator."""
        return None

    def empty_cache(self) -> None:
        """Do nothing, because there is no cache of device memory."""
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Return (None, None), because a CPU has no compute capability."""
        return None, None

    def communication_backend_name(self) -> str:
        """Return torch's backend for collective communication between CPUs."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable that Ray sets for its "GPU" resource."""
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        """Return a context manager that does nothing."""
        return nullcontext()

    def profiler_start(self) -> None:
        """Do nothing, because there is no device profiler."""
        return None

    def profiler_stop(self) -> None:
        """Do nothing, because there is no device profiler."""
        return None

    def ray_resource_name(self) -> str:
        """Return "GPU". Ray has this resource on any machine if `num_gpus` is passed to `ray.init`."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return the variables that keep Ray from setting the visible devices of "GPU" workers."""
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """Return False, so that verl passes weights through /dev/shm."""
        return False

    def cudart(self) -> Any:
        """Return None, because there is no CUDA runtime."""
        return None
