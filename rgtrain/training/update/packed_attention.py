"""Attention over packed sequences, registered with transformers under NAME.

The keys of a segment are consecutive tokens of its sequence, also if the prompt is shared. A sliding window, which
counts such tokens, therefore works.

On a GPU, it is one call of a variable-length kernel, the fastest that works there.
On a CPU, it uses a dense mask per group.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rgtrain.training.update.attention_kernels import AttentionShape, chosen_kernel

NAME = "shared_prompt"


class PackedLayout:
    """The attention pattern of a row of packed groups.

    A segment is a prompt or a completion. It attends causally to the tokens of its prompt and to its previous tokens.

    This is not a dataclass, because FSDP would traverse a dataclass and its content at every layer.

    Args:
        group_lengths: The number of tokens of each group's prompt and completions, in the order of the row.
        keys: The positions in the row of the tokens to which the segments attend, segment by segment.
        query_starts: [segments + 1], the start of each segment among the tokens of the row.
        key_starts: [segments + 1], the start of each segment among `keys`.
        max_queries: The largest number of tokens of a segment.
        max_keys: The largest number of `keys` of a segment.
    """

    def __init__(
        self,
        group_lengths: list[list[int]],
        *,
        keys: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        max_queries: int,
        max_keys: int,
    ):
        self.group_lengths = group_lengths
        self.keys = keys
        self.query_starts = query_starts
        self.key_starts = key_starts
        self.max_queries = max_queries
        self.max_keys = max_keys

    @classmethod
    def of(cls, group_lengths: list[list[int]]) -> "PackedLayout":
        """Return the layout of groups with these lengths of prompts and completions."""
        keys, num_queries, num_keys = [], [], []
        start = 0
        for prompt, *completions in group_lengths:
            prompt_tokens = np.arange(start, start + prompt)
            keys.append(prompt_tokens)
            num_queries.append(prompt)
            num_keys.append(prompt)
            start += prompt
            for length in completions:
                keys += [prompt_tokens, np.arange(start, start + length)]
                num_queries.append(length)
                num_keys.append(prompt + length)
                start += length
        return cls(
            group_lengths,
            keys=torch.from_numpy(np.concatenate(keys)),
            query_starts=_starts(num_queries),
            key_starts=_starts(num_keys),
            max_queries=max(num_queries),
            max_keys=max(num_keys),
        )

    def to(self, device: Any, non_blocking: bool = False) -> "PackedLayout":
        """Return a copy with its tensors on `device`."""
        tensors = {name: getattr(self, name) for name in ("keys", "query_starts", "key_starts")}
        moved = {name: copy_to_device(tensor, device) for name, tensor in tensors.items()}
        return PackedLayout(**{**vars(self), **moved})


def copy_to_device(tensor: Tensor, device: Any) -> Tensor:
    """Return a copy on `device` without waiting for kernels that are still queued there.

    Without pinned memory, CUDA would wait before it copies a large tensor.
    """
    if tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


@dataclass(frozen=True)
class LocalPattern:
    """The mask of a layer that sees only nearby tokens: those of a sliding window, or those of the same chunk."""

    size: int
    is_window: bool


def _local_pattern(*, config: Any, local_size: int | None = None, **_: Any) -> LocalPattern | None:
    """Return the pattern of a layer's mask for the interface of transformers, or None for full causal attention."""
    if local_size is None:
        return None
    return LocalPattern(local_size, is_window=local_size != getattr(config, "attention_chunk_size", None))


def shared_prompt_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LocalPattern | None,
    *,
    layout: PackedLayout,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention through the interface of transformers.

    Args:
        module: The attention layer, unused.
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size].
        value: [1, key heads, tokens, size].
        attention_mask: The pattern of a layer that sees only nearby tokens. Everything else is in `layout`.
        layout: The layout of the row, which is passed as an argument of the model's forward pass.
        **kwargs: Further arguments of transformers, of which `scaling` and `sliding_window` are used.

    Returns:
        The output [1, tokens, heads, size], and None in place of the attention weights.

    Raises:
        NotImplementedError: The layer needs a kind of attention that does not work with packed sequences.
    """
    unsupported = [name for name in ("softcap", "s_aux", "position_bias", "indices") if kwargs.get(name) is not None]
    if unsupported or kwargs.get("is_causal") is False or len(query) > 1:
        raise NotImplementedError(f"attention with {', '.join(unsupported) or 'other masks'} is not possible")
    if attention_mask is not None and not (isinstance(attention_mask, LocalPattern) and attention_mask.is_window):
        raise NotImplementedError("attention with an unknown mask is not possible")
    window = attention_mask.size if attention_mask is not None else None
    # A layer names its window, if it has one, and its model makes the mask. Without both, the window is uncertain.
    if (kwargs.get("sliding_window") or None) != window:
        raise NotImplementedError("attention with a window that its mask does not have is not possible")
    attend = _attend_on_gpu if query.is_cuda else _attend_on_cpu
    return attend(query[0], key[0], value[0], layout, kwargs.get("scaling"), window)[None], None


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, _local_pattern)


_searches_packed_sequences = True


@contextmanager
def known_sequences() -> Iterator[None]:
    """Within this block, transformers does not search positions for packed sequences, which would wait for the GPU."""
    global _searches_packed_sequences
    before, _searches_packed_sequences = _searches_packed_sequences, False
    try:
        yield
    finally:
        _searches_packed_sequences = before


def searching_unless_known(original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Wrap transformers' `find_packed_sequence_indices` for models whose caller knows the sequences of each row."""

    def find_packed_sequence_indices(position_ids: Tensor) -> Any:
        return original(position_ids) if _searches_packed_sequences else None

    return find_packed_sequence_indices


def _attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, window: int | None
) -> Tensor:
    queries = query.transpose(0, 1).contiguous()
    take: Callable[[Tensor, Tensor], Tensor] = _TakeTokens.apply
    keys, values = (take(tensor.transpose(0, 1), layout.keys) for tensor in (key, value))
    shape = AttentionShape(len(query), len(key), query.shape[-1], value.shape[-1], query.dtype, window)
    lengths = (layout.query_starts, layout.key_starts, layout.max_queries, layout.max_keys)
    return chosen_kernel(shape, query.device).attend(queries, keys, values, *lengths, scale=scale, window=window)


class _TakeTokens(torch.autograd.Function):
    """`tensor[index]` with a gradient that is summed in fp32, because prompt tokens receive it from all completions."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_tokens = len(tensor)
        return tensor.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        [index] = ctx.saved_tensors
        total = torch.zeros(ctx.num_tokens, *grad.shape[1:], dtype=torch.float32, device=grad.device)
        return total.index_add_(0, index, grad.float()).to(grad.dtype), None


def _attend_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, window: int | None
) -> Tensor:
    outputs, start = [], 0
    for lengths in layout.group_lengths:
        group = slice(start, start + sum(lengths))
        outputs.append(
            scaled_dot_product_attention(
                query[None, :, group],
                key[None, :, group],
                value[None, :, group],
                attn_mask=_group_mask(tuple(lengths), window),
                scale=scale,
                enable_gqa=len(query) != len(key),
            )[0]
        )
        start = group.stop
    return torch.cat(outputs, dim=1).transpose(0, 1).contiguous()


@lru_cache(maxsize=256)
def _group_mask(lengths: tuple[int, ...], window: int | None) -> Tensor:
    """Return a mask [tokens, tokens] that is true if a token (row) attends to another one (column).

    The cache serves all layers of a forward pass, which use the same masks.

    Args:
        lengths: The lengths of the prompt and of each completion.
        window: The number of tokens of its sequence that a token sees, including itself. None means all.

    Returns:
        The mask, in which a token sees the tokens up to itself in its prompt and its completion.
    """
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = segments[:, None] == segments[None, :]
    mask = (same | (segments == 0)[None, :]).tril()
    if window is None:
        return mask
    prompt, *completions = lengths
    positions = torch.cat([torch.arange(prompt), *(torch.arange(prompt, prompt + length) for length in completions)])
    return mask & (positions[:, None] - positions[None, :] < window)
