"""CPU versions of functions that torch offers only for accelerators."""

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor


def empty_cache() -> None:
    """Do nothing, because there is no cache of device memory."""


def ipc_collect() -> None:
    """Do nothing, because no device memory is shared with other processes."""


def memory_allocated(device: Any = None) -> int:
    """Return this process's resident memory in bytes."""
    return psutil.Process().memory_info().rss


memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated


def reset_peak_memory_stats(device: Any = None) -> None:
    """Do nothing, because no peak is recorded."""


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return the machine's free and total memory in bytes."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def get_rng_state(device: Any = None) -> Tensor:
    """Return the state of torch's generator."""
    return torch.get_rng_state()


def set_rng_state(state: Tensor, device: Any = None) -> None:
    """Set the state of torch's generator."""
    torch.set_rng_state(state)


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """Return `tensor` unchanged."""
    return tensor


def has_no_cuda_device() -> bool:
    """Return whether there is no CUDA device, so that memory cannot be pinned."""
    return not torch.cuda.is_available()


def naming_cpu_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap torch's `init_process_group` so that it accepts the CPU's backend twice, as verl passes it."""

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    return init_process_group
