"""Let Python launch micro-batches ahead of the GPU, by not waiting for results that are only needed at the end.

A wait before each backward pass and each forward pass leaves the GPU idle while Python launches the next kernels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch.overrides import TorchFunctionMode
from verl.utils.metric import Metric

from rgtrain.training.update.packed_attention import copy_to_device

# Lengths and token ids of a micro-batch are read in Python, so they stay in the host's memory.
_READ_BY_PYTHON = ("prompts", "responses", "input_ids", "position_ids", "temperature")


def loss_inputs(micro_batch: TensorDict, device: Any) -> TensorDict:
    """Return a micro-batch for the loss function, with its numbers on `device`.

    Nested tensors with one value per response token share their offsets. Prompts, responses and whole sequences stay
    in the host's memory.

    Args:
        micro_batch: The samples, as the trainer sends them.
        device: The device of the model.

    Returns:
        A copy of the micro-batch. Its other values are not copied.
    """
    moved = micro_batch.copy().clear_device_()
    responses: Any = micro_batch["responses"].cpu()
    offsets = copy_to_device(responses.offsets(), device)
    longest = int(responses.offsets().diff().max())
    for name in micro_batch.keys():  # noqa: SIM118 (iterating over a TensorDict yields rows)
        value = micro_batch.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        if name in _READ_BY_PYTHON:
            moved.set(name, value.cpu())
        elif not value.is_nested:
            moved.set(name, copy_to_device(value, device))
        elif _have_equal_lengths(value, responses):
            moved.set(name, nested_values(copy_to_device(value.values(), device), offsets, longest))
        else:
            moved.set(name, value.to(device))
    return moved


def _have_equal_lengths(one: Any, other: Any) -> bool:
    return torch.equal(one.offsets().cpu(), other.offsets())


def nested_values(values: torch.Tensor, offsets: torch.Tensor, longest: int) -> torch.Tensor:
    """Return values as a nested tensor whose longest row is known, so that padding it reads no length from the GPU."""
    return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=longest)


class _DeferredItems(TorchFunctionMode):
    """Let `tensor.item()` return a copy of a floating-point tensor, which stays on the GPU, instead of a number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_floating_point():
            # A copy, because verl adds further terms to a loss in place.
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


@contextmanager
def deferred_items() -> Iterator[None]:
    """Within this block, metrics hold tensors on the GPU instead of numbers, which Python would wait for."""
    with _DeferredItems():
        yield


def reading_items_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap verl's `postprocess_batch_func` to read the deferred numbers of all micro-batches in one transfer."""

    def postprocess(output_lst: list[dict[str, Any]], indices: Any, data: TensorDict) -> Any:
        read_items(output_lst)
        return original(output_lst=output_lst, indices=indices, data=data)

    return postprocess


def read_items(outputs: list[dict[str, Any]]) -> None:
    """Replace the deferred numbers in the losses and metrics of micro-batches by Python's numbers."""
    holders: list[tuple[Any, Any]] = []
    for output in outputs:
        holders += [(output, "loss")] if isinstance(output.get("loss"), torch.Tensor) else []
        for name, value in output.get("metrics", {}).items():
            if isinstance(value, torch.Tensor):
                holders.append((output["metrics"], name))
            elif isinstance(value, Metric):
                holders += [(value.values, i) for i, one in enumerate(value.values) if isinstance(one, torch.Tensor)]
    if not holders:
        return
    # A half-precision number is exact in fp32.
    numbers = torch.stack([holder[key].detach().float().reshape(()) for holder, key in holders]).tolist()
    for (holder, key), number in zip(holders, numbers, strict=True):
        holder[key] = number
