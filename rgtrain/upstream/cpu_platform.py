"""verl's platform on a machine without an accelerator."""

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import platform_base


class CpuPlatform(platform_base.PlatformBase):
    """One "device" a Ray worker, all of them the machine's CPU."""

    device_name = "cpu"
    vendor_name = "generic"
    device_module: ModuleType = torch.cpu

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        # A plain 0 would mean "accelerator 0" to torch.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return nullcontext()

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        # Ray knows "GPU" on any machine once ray.init is told num_gpus; verl asks it for accelerator ids by this name.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # Weights then reach vLLM through /dev/shm.
        return False

    def cudart(self) -> Any:
        return None
