"""Count the bytes that a computation keeps, on meta tensors and without computing values."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Tracks the live bytes of storages that are created inside the context.

    `now` is the current number and `peak` the largest one. The tensors in `known` are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self._live: dict[int, Any] = {}
        self.now = self.peak = 0
        for tensor in known:
            self._see(tensor, count=False)

    def _see(self, tensor: torch.Tensor, *, count: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if count else 0
        if key not in self._live:
            self._live[key] = size, weakref.ref(storage, lambda _: self._forget(key))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._live.pop(key)[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, output)
        return output


class KernelAttention(torch.autograd.Function):
    """Attention that keeps the tensors of a fused kernel (inputs, output and one number per query)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def kernel_attention(module: Any, query: Any, key: Any, value: Any, mask: None, **_: Any) -> tuple[torch.Tensor, None]:
    """Run `KernelAttention` through transformers' attention interface."""
    inputs = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    return KernelAttention.apply(*inputs), None
