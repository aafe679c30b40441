"""Split a mini-batch into micro-batches that fit into memory and hold whole groups."""

from collections.abc import Callable, Sequence

import numpy as np

from rgtrain.training.update.packing import group_by_prompt


def split_into_micro_batches(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    max_tokens: int,
    num_parts_agreed: Callable[[int], int] = lambda num_parts: num_parts,
    shares_prompts: bool = True,
) -> list[list[int]]:
    """Split sequences into micro-batches of about equal numbers of tokens.

    Sequences with equal prompts form a group. A group stays in one micro-batch, unless it alone exceeds `max_tokens`.

    Args:
        prompts: The token ids of each sequence's prompt.
        responses: The token ids of each sequence's completion.
        max_tokens: The maximum number of tokens per micro-batch, with each prompt counted once.
        num_parts_agreed: Maps the number of micro-batches that this rank needs to the number that all ranks run.
        shares_prompts: Whether a group has one copy of its prompt. Otherwise, each sequence is a group.

    Returns:
        The indices of the sequences of each micro-batch. Every sequence occurs once, and no micro-batch is empty.
    """
    if shares_prompts:
        groups = group_by_prompt(prompts, responses, max_group_tokens=max_tokens)
    else:
        groups = [[i] for i in range(len(prompts))]
    sizes = [len(prompts[group[0]]) + sum(len(responses[i]) for i in group) for group in groups]
    agreed = num_parts_agreed(_num_parts_that_fit(sizes, max_tokens))
    while len(groups) < agreed:
        groups, sizes = _with_largest_halved(groups, sizes)
    return [[i for number in part for i in groups[number]] for part in _balanced(sizes, agreed)]


def split_rows(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    num_parts_agreed: Callable[[int], int] = lambda num_parts: num_parts,
) -> list[list[int]]:
    """Split sequences into micro-batches of padded rows, each with sequences of similar lengths.

    Args:
        lengths: The number of tokens of each sequence.
        max_tokens: The maximum number of tokens per micro-batch, including padding.
        num_parts_agreed: Maps the number of micro-batches that this rank needs to the number that all ranks run.

    Returns:
        The indices of the sequences of each micro-batch. Every sequence occurs once, and no micro-batch is empty.
    """
    parts: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= max_tokens:
            parts[-1].append(number)
        else:
            parts.append([number])
    sizes = [len(part) * lengths[part[0]] for part in parts]
    agreed = num_parts_agreed(len(parts))
    while len(parts) < agreed:
        parts, sizes = _with_largest_halved(parts, sizes)
    return [sorted(part) for part in parts]


def _num_parts_that_fit(sizes: Sequence[int], max_tokens: int) -> int:
    num_parts = min(len(sizes), max(1, -(-sum(sizes) // max_tokens)))
    while num_parts < len(sizes) and _most_tokens(sizes, num_parts) > max_tokens:
        num_parts += 1
    return num_parts


def _most_tokens(sizes: Sequence[int], num_parts: int) -> int:
    return max(sum(sizes[number] for number in part) for part in _balanced(sizes, num_parts))


def _balanced(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Distribute groups over parts, the largest first, each to the part with the fewest tokens."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    used = [0] * num_parts
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        # Empty parts first, because none may stay empty.
        least = min(range(num_parts), key=lambda part: (bool(parts[part]), used[part]))
        parts[least].append(number)
        used[least] += sizes[number]
    return [sorted(part) for part in parts]


def _with_largest_halved(groups: list[list[int]], sizes: list[int]) -> tuple[list[list[int]], list[int]]:
    number = max(range(len(groups)), key=lambda number: (len(groups[number]) > 1, sizes[number]))
    group, size = groups[number], sizes[number]
    if len(group) == 1:
        raise ValueError(f"{len(groups)} sequences cannot be split into more than {len(groups)} micro-batches")
    half = len(group) // 2
    groups = [*groups[:number], *groups[number + 1 :], group[:half], group[half:]]
    return groups, [*sizes[:number], *sizes[number + 1 :], size // 2, size - size // 2]
