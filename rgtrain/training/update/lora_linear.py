"""LoRA's linear layers as one matrix product with merged weights, and gradients of the adapter alone.

PEFT computes the product of an adapter, scales it and adds it to the result of the frozen layer. Each of these kernels
passes over all tokens, and the backward pass has as many. A micro-batch has more tokens than a layer has inputs or
outputs, so it is faster to merge the adapter into a copy of the weight. vLLM gets the same merged weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

# The attribute of a layer that holds its adapter while its gathered weight is the merged one.
_MERGED_ADAPTER = "rgtrain_merged_adapter"


class AdaptedLinear(torch.autograd.Function):
    """The layer x (W + s B A)^T + bias, of which only the adapter's A and B are trained.

    Unless the weight is merged already, the backward pass merges it again, so that layers do not hold a second copy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
        is_merged: bool,
    ) -> Tensor:
        """Compute the layer. All tensors have the same dtype.

        Args:
            ctx: torch's context for the backward pass.
            inputs: [..., num_inputs].
            weight: [num_outputs, num_inputs], the frozen W, or W + s B A.
            bias: [num_outputs], frozen, or None.
            down: [rank, num_inputs], the adapter's A.
            up: [num_outputs, rank], the adapter's B.
            scaling: The factor s.
            is_merged: Whether `weight` is W + s B A.

        Returns:
            [..., num_outputs].
        """
        ctx.save_for_backward(inputs, weight, down, up)
        ctx.scaling, ctx.is_merged = scaling, is_merged
        return linear(inputs, weight if is_merged else torch.addmm(weight, up, down, alpha=scaling), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of `inputs`, `down` and `up` from the `gradient` of the result."""
        inputs, weight, down, up = ctx.saved_tensors
        scaling = ctx.scaling
        rows, gradient_rows = inputs.flatten(0, -2), gradient.flatten(0, -2)
        of_inputs = of_down = of_up = None
        if ctx.needs_input_grad[0]:
            merged = weight if ctx.is_merged else torch.addmm(weight, up, down, alpha=scaling)
            of_inputs = (gradient_rows @ merged).view(inputs.shape)
        # With beta=0, the first argument only gives the shape, and the product takes the scaling at no cost.
        if ctx.needs_input_grad[3]:
            of_down = torch.addmm(down, (gradient_rows @ up).t(), rows, beta=0, alpha=scaling)
        if ctx.needs_input_grad[4]:
            of_up = torch.addmm(up, gradient_rows.t(), rows @ down.t(), beta=0, alpha=scaling)
        return of_inputs, None, None, of_down, of_up, None, None


class _Adapter(NamedTuple):
    """The tensors of a layer and its only active adapter, in the order of `AdaptedLinear`."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    scaling: float


def with_merged_weights(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the forward method of PEFT's `Linear`.

    Layers with anything but one plain adapter keep PEFT's method. This includes dropout, DoRA and other variants,
    several active adapters, adapters that are disabled or merged, and quantised or trained base layers.

    Args:
        original: PEFT's method.

    Returns:
        A method that gives the same results up to rounding.
    """

    @wraps(original)
    def forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            return original(layer, x, *args, **kwargs)
        merged: _Adapter | None = vars(layer).get(_MERGED_ADAPTER)
        adapter = merged or _only_adapter(layer)
        if adapter is None:
            return original(layer, x)
        tensors = [x, *adapter[:-1]]
        if merged is not None:
            tensors[0] = x.to(merged.weight.dtype)
        elif torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        elif any(tensor is not None and tensor.dtype != x.dtype for tensor in tensors):
            return original(layer, x)
        result: Tensor = AdaptedLinear.apply(*tensors, adapter.scaling, merged is not None)  # type: ignore[no-untyped-call]
        return result

    return forward


@contextmanager
def merged_in_gathered_weights(model: nn.Module) -> Iterator[None]:
    """Merge adapters into the gathered weights of a sharded model, so that its layers need not do so each time.

    The shards keep the frozen weights. The caller must not change the adapters or reshard units within the context,
    except in the last backward pass.

    Args:
        model: The model, sharded by FSDP2. It must keep gathered parameters after its forward pass.

    Yields:
        Nothing. The units are resharded at the end.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule) and module is not model]
    merged = []
    try:
        for unit in units:
            layers = [module for module in unit.modules() if type(module) is Linear]
            if layers:
                unit.unshard()
            merged += [layer for layer in layers if _merge_into_gathered_weight(layer)]
        yield
    finally:
        for layer in merged:
            del vars(layer)[_MERGED_ADAPTER]
        for unit in units:
            unit.reshard()


def _merge_into_gathered_weight(layer: Any) -> bool:
    """Merge a layer's adapter into its weight, and return whether this was possible."""
    adapter = None if _MERGED_ADAPTER in vars(layer) else _only_adapter(layer)
    if adapter is None or isinstance(adapter.weight, DTensor):
        return False
    if len({tensor.dtype for tensor in adapter[:-1] if tensor is not None}) > 1:
        return False
    # Autograd need not know of it, because nothing is saved for a backward pass yet.
    adapter.weight.data.addmm_(adapter.up.data, adapter.down.data, alpha=adapter.scaling)
    vars(layer)[_MERGED_ADAPTER] = adapter
    return True


def _only_adapter(layer: Any) -> _Adapter | None:
    """Return the layer's active adapter if it is the only one and a plain one, and None otherwise."""
    # Looking up a module by attribute is slow, and this runs for each layer of each micro-batch.
    modules = layer._modules
    base, adapters = modules["base_layer"], modules["lora_A"]._modules
    active = [name for name in layer.active_adapters if name in adapters]
    if layer.disable_adapters or layer.merged or len(active) != 1 or type(base) is not nn.Linear:
        return None
    name = active[0]
    down, up, dropout = (modules[part]._modules[name] for part in ("lora_A", "lora_B", "lora_dropout"))
    weight, bias = base.weight, base.bias
    is_plain = (
        name not in layer.lora_variant
        and not layer.fan_in_fan_out
        and up.bias is None
        and (type(dropout) is nn.Identity or not layer.training)
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
    )
    # Neither hooks nor a replaced method of the layers inside may be skipped.
    if not is_plain or any(_is_hooked(inner) for inner in (base, down, up)):
        return None
    return _Adapter(weight, bias, down.weight, up.weight, layer.scaling[name])


def _is_hooked(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks) or "forward" in vars(layer)
