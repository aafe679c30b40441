"""Variable-length attention kernels for GPUs, of which the fastest that works here is used.

flash-attn 2 and flash-attn-4 are imported as `flash_attn`, so only the names of their distributions differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor

from rgtrain.machine.devices import is_installed

# The largest relative error of outputs and gradients of the trial. Rounding to bf16 explains 0.01.
_MAX_ERROR = 0.05
# Queries and keys of the segments of the trial, a prompt and its completions.
_TRIAL_SEGMENTS = ((21, 21), (17, 38), (1, 22), (40, 61))


# Causal attention of segments, whose last query sees all keys of its segment. The first three arguments are queries
# [queries, heads, size], keys [keys, key heads, size] and values [keys, key heads, value size]. Next come the starts of
# segments among queries and among keys, each [segments + 1] in int32. Then come the largest numbers of queries and of
# keys of a segment. `scale` is the factor of the scores (None means 1 / sqrt(size)). `window` is the number of keys
# that a query sees, including its own (None means all). The result is [queries, heads, value size].
VariableLengthAttention = Callable[..., Tensor]


@dataclass(frozen=True)
class AttentionShape:
    """The properties of a model's attention on which the choice of a kernel depends."""

    num_heads: int
    num_key_heads: int
    head_size: int
    value_size: int
    dtype: torch.dtype
    window: int | None


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel that may be installed.

    Attributes:
        name: Its name in the log.
        distribution: The name of its distribution. None means that torch has it.
        load: Imports the kernel.
        capabilities: The major numbers of the compute capabilities for which it is made.
        max_head_size: The largest size of heads, for queries and for values.
        min_tokens: The smallest micro-batch with which it is faster than the next kernel.
    """

    name: str
    distribution: str | None
    load: Callable[[], VariableLengthAttention]
    capabilities: tuple[int, ...]
    max_head_size: int
    min_tokens: int = 0

    def obstacle(self, shape: AttentionShape, *, capability: int, num_tokens: int) -> str | None:
        """Return why the kernel can't be used, or is slower than the next one, without importing it. Or return None."""
        if self.distribution is not None and not is_installed(self.distribution):
            return "not installed"
        if capability not in self.capabilities:
            return f"not made for compute capability {capability}.x"
        if max(shape.head_size, shape.value_size) > self.max_head_size:
            return f"heads are larger than {self.max_head_size}"
        if shape.dtype not in (torch.float16, torch.bfloat16):
            return f"it does not compute in {str(shape.dtype).removeprefix('torch.')}"
        if num_tokens < self.min_tokens:
            return f"slower with fewer than {self.min_tokens:,} tokens per micro-batch"
        return None


def _flash_attention_4() -> VariableLengthAttention:
    from flash_attn.cute import flash_attn_varlen_func

    def attend(*tensors: Any, scale: float | None, window: int | None) -> Tensor:
        queries, keys, values, query_starts, key_starts, max_queries, max_keys = tensors
        output: Tensor
        output, _ = flash_attn_varlen_func(
            queries,
            keys,
            values,
            cu_seqlens_q=query_starts,
            cu_seqlens_k=key_starts,
            max_seqlen_q=max_queries,
            max_seqlen_k=max_keys,
            softmax_scale=scale,
            causal=True,
            window_size=(None, None) if window is None else _window_size(window),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return output

    return attend


def _flash_attention_2() -> VariableLengthAttention:
    from flash_attn import flash_attn_varlen_func

    def attend(*tensors: Any, scale: float | None, window: int | None) -> Tensor:
        output: Tensor = flash_attn_varlen_func(
            *tensors,
            softmax_scale=scale,
            causal=True,
            window_size=_window_size(window),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return output

    return attend


def _torch_attention() -> VariableLengthAttention:
    from torch.nn.attention.varlen import varlen_attn

    # Older versions share key heads without being asked to.
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}

    def attend(*tensors: Any, scale: float | None, window: int | None) -> Tensor:
        output: Any = varlen_attn(*tensors, scale=scale, window_size=_window_size(window), **options)
        return cast(Tensor, output)

    return attend


def _window_size(window: int | None) -> tuple[int, int]:
    # The kernels count the keys before a query, without its own.
    return -1 if window is None else window - 1, 0


_AMPERE_AND_LATER = (8, 9, 10, 11, 12)
TORCH = AttentionKernel("torch", None, _torch_attention, _AMPERE_AND_LATER, max_head_size=256)
# From the fastest to the slowest, as docs/training.md reports. flash-attn 2 has the same kernels as torch. With small
# micro-batches an update waits for Python, and flash-attn-4 has more to do there.
KERNELS = (
    AttentionKernel(
        "flash-attn-4",
        "flash-attn-4",
        _flash_attention_4,
        (9, 10, 11),
        max_head_size=128,
        min_tokens=16_000,
    ),
    AttentionKernel("flash-attn", "flash-attn", _flash_attention_2, _AMPERE_AND_LATER, max_head_size=256),
    TORCH,
)


@dataclass(frozen=True)
class KernelChoice:
    """The kernel for an attention shape. `rejected` holds the names of faster kernels, each with the reason."""

    name: str
    attend: VariableLengthAttention
    rejected: dict[str, str]

    def __str__(self) -> str:
        """Return one line for the log."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.rejected.items())
        return f"attention in training: {self.name}" + (f" ({reasons})" if reasons else "")


def choose_kernel(
    shape: AttentionShape,
    *,
    device: torch.device | str,
    capability: int,
    num_tokens: int,
    kernels: Sequence[AttentionKernel] = KERNELS,
) -> KernelChoice:
    """Return the fastest kernel that is installed, supports the shape, and is right in a trial.

    Nothing is timed, so all ranks and all runs on the same machines make the same choice.

    Args:
        shape: The shape of the attention.
        device: The device of the trial.
        capability: The major number of the device's compute capability.
        num_tokens: The tokens of a micro-batch.
        kernels: The kernels, from the fastest to the slowest.

    Returns:
        The choice.

    Raises:
        NotImplementedError: No kernel can be used.
    """
    rejected: dict[str, str] = {}
    for kernel in kernels:
        reason = kernel.obstacle(shape, capability=capability, num_tokens=num_tokens)
        if reason is None:
            # An import or a compilation can fail in any way, and a slower kernel may still work.
            try:
                attend = kernel.load()
                error = _trial_error(attend, shape, device)
            except Exception as failure:
                reason = f"{(str(failure).strip().splitlines() or [type(failure).__name__])[0]:.100}"
            else:
                if error <= _MAX_ERROR:
                    return KernelChoice(kernel.name, attend, rejected)
                reason = f"wrong by {error:.2g} in a trial"
        rejected[kernel.name] = reason
    # The last one is most likely to be installed.
    reasons = "; ".join(f"{name}: {reason}" for name, reason in reversed(rejected.items()))
    raise NotImplementedError(f"no attention kernel works ({reasons})")


_choices: dict[tuple[AttentionShape, torch.device, int], KernelChoice] = {}
_num_tokens = 0


def expect_micro_batches(num_tokens: int) -> None:
    """Choose kernels for micro-batches of this size from now on. A run's size decides, so its self-test covers them."""
    global _num_tokens
    _num_tokens = num_tokens


def chosen_kernel(shape: AttentionShape, device: torch.device) -> KernelChoice:
    """Return the choice for a shape on a CUDA device, which is made once."""
    choice = _choices.get((shape, device, _num_tokens))
    if choice is None:
        capability = torch.cuda.get_device_capability(device)[0]
        # A trial needs gradients, also if the first forward pass has none, and computes in its own dtype.
        with torch.enable_grad(), torch.autocast("cuda", enabled=False):
            choice = choose_kernel(shape, device=device, capability=capability, num_tokens=_num_tokens)
        _choices[shape, device, _num_tokens] = choice
    return choice


def made_choices() -> list[str]:
    """Return a line for the log for each different choice that was made in this process."""
    return list(dict.fromkeys(map(str, _choices.values())))


def _trial_error(attend: VariableLengthAttention, shape: AttentionShape, device: torch.device | str) -> float:
    """Return the largest relative error of outputs and gradients for some random segments."""
    num_queries, num_keys = (sum(lengths) for lengths in zip(*_TRIAL_SEGMENTS, strict=True))
    # A separate generator, because the choice must not change later random numbers.
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(device, shape.dtype)

    inputs = (
        random(num_queries, shape.num_heads, shape.head_size),
        random(num_keys, shape.num_key_heads, shape.head_size),
        random(num_keys, shape.num_key_heads, shape.value_size),
    )
    gradient = random(num_queries, shape.num_heads, shape.value_size)
    starts = [
        torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        for lengths in zip(*_TRIAL_SEGMENTS, strict=True)
    ]
    longest = [max(lengths) for lengths in zip(*_TRIAL_SEGMENTS, strict=True)]
    functions = partial(attend, scale=None, window=shape.window), partial(_plain_attention, window=shape.window)
    results = []
    for function, dtype in zip(functions, (shape.dtype, torch.float32), strict=True):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        output = function(*leaves, *starts, *longest)
        results.append([output, *torch.autograd.grad(output, leaves, gradient.to(output.dtype))])
    errors = [((ours.float() - plain).norm() / plain.norm()).item() for ours, plain in zip(*results, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("inf")


def _plain_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    max_queries: int,
    max_keys: int,
    *,
    window: int | None,
) -> Tensor:
    """Compute attention segment by segment, with all scores in memory."""
    outputs = []
    for segment in range(len(query_starts) - 1):
        own = queries[query_starts[segment] : query_starts[segment + 1]]
        part = slice(int(key_starts[segment]), int(key_starts[segment + 1]))
        # [heads, tokens, size], with each key head repeated for the query heads that share it.
        key, value = (
            tensor[part].repeat_interleave(own.shape[1] // tensor.shape[1], dim=1).transpose(0, 1)
            for tensor in (keys, values)
        )
        scores = own.transpose(0, 1) @ key.transpose(1, 2) / own.shape[-1] ** 0.5
        num_before = key.shape[1] - len(own)
        distance = torch.arange(len(own), device=own.device)[:, None] + num_before
        distance = distance - torch.arange(key.shape[1], device=own.device)[None]
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        outputs.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outputs)
