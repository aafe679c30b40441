"""Split a mini-batch into micro-batches that fit into memory and hold whole groups."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rgtrain.training.update.packing import group_by_prompt

# The fixed cost of a micro-batch, as a share of that of a full one. A group is divided between micro-batches if that
# saves a micro-batch for every so many tokens of repeated prompts.
_FIXED_SHARE = 1 / 8


@dataclass(frozen=True)
class PackedGroup:
    """Sequences of one group that a micro-batch computes behind one copy of their prompt.

    Attributes:
        prompt: The number of tokens of the prompt.
        responses: The number of tokens of each completion.
        members: The indices of the sequences.
    """

    prompt: int
    responses: Sequence[int]
    members: Sequence[int]

    @property
    def tokens(self) -> int:
        """The number of tokens with one copy of the prompt."""
        return self.prompt + sum(self.responses)

    def divided(self, room: int) -> "tuple[PackedGroup, PackedGroup] | None":
        """Return as many sequences as fit into `room` tokens, and the others; None if none or all fit."""
        taken, used = set(), self.prompt
        for number in sorted(range(len(self.responses)), key=lambda number: -self.responses[number]):
            if used + self.responses[number] <= room:
                taken.add(number)
                used += self.responses[number]
        if not 0 < len(taken) < len(self.members):
            return None
        return self._part(taken), self._part(set(range(len(self.members))) - taken)

    def first_alone(self) -> "tuple[PackedGroup, PackedGroup]":
        """Return the first sequence and the others."""
        return self._part({0}), self._part(set(range(1, len(self.members))))

    def halves(self) -> "tuple[PackedGroup, PackedGroup]":
        """Return the first and the second half of the sequences."""
        half = len(self.members) // 2
        return self._part(set(range(half))), self._part(set(range(half, len(self.members))))

    def _part(self, numbers: set[int]) -> "PackedGroup":
        kept = sorted(numbers)
        return PackedGroup(self.prompt, [self.responses[i] for i in kept], [self.members[i] for i in kept])


def split_into_micro_batches(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    max_tokens: int,
    num_parts_agreed: Callable[[int], int] = lambda num_parts: num_parts,
    shares_prompts: bool = True,
) -> list[list[int]]:
    """Split sequences into micro-batches of about equal numbers of tokens.

    Sequences with equal prompts form a group. A group stays in one micro-batch, unless it alone exceeds `max_tokens`,
    or dividing it saves a micro-batch at the cost of few repeated prompts.

    Args:
        prompts: The token ids of each sequence's prompt.
        responses: The token ids of each sequence's completion.
        max_tokens: The maximum number of tokens per micro-batch, with each prompt counted once.
        num_parts_agreed: Maps the number of micro-batches that this rank needs to the number that all ranks run.
        shares_prompts: Whether a group has one copy of its prompt. Otherwise, each sequence is a group.

    Returns:
        The indices of the sequences of each micro-batch, the largest micro-batch first, so that ranks run similar ones
        at the same time. Every sequence occurs once. Micro-batches are empty only if there are fewer sequences.
    """
    if shares_prompts:
        members = group_by_prompt(prompts, responses, max_group_tokens=None)
    else:
        members = [[i] for i in range(len(prompts))]
    groups = [PackedGroup(len(prompts[own[0]]), [len(responses[i]) for i in own], own) for own in members]
    parts = packed(groups, max_tokens)
    agreed = num_parts_agreed(len(parts))
    if agreed > len(parts):
        parts = _spread(divided_to_fit(groups, max_tokens), agreed, max_tokens) or parts
    while len(parts) < min(agreed, len(prompts)):
        parts = _with_largest_part_halved(parts)
    parts += [[] for _ in range(agreed - len(parts))]
    parts.sort(key=lambda part: -sum(group.tokens for group in part))
    return [sorted(i for group in part for i in group.members) for part in parts]


def packed(groups: Sequence[PackedGroup], max_tokens: int) -> list[list[PackedGroup]]:
    """Pack groups into few micro-batches.

    Args:
        groups: The groups. A sequence that exceeds the maximum is alone.
        max_tokens: The maximum number of tokens per micro-batch.

    Returns:
        The groups of each micro-batch, with parts of those that are divided.
    """
    whole = divided_to_fit(groups, max_tokens)
    sizes = [group.tokens for group in whole]
    num_whole = _count_whole(sizes, max_tokens)
    if any(len(group.members) > 1 for group in groups):
        for num_parts in range(max(1, -(-sum(sizes) // max_tokens)), num_whole):
            found = _with_divided_groups(groups, num_parts, max_tokens)
            if found is not None:
                repeated = sum(group.tokens for part in found for group in part) - sum(sizes)
                if repeated <= (num_whole - num_parts) * max_tokens * _FIXED_SHARE:
                    return found
    return _spread(whole, num_whole, max_tokens) or [[group] for group in whole]


def divided_to_fit(groups: Sequence[PackedGroup], max_tokens: int) -> list[PackedGroup]:
    """Divide groups that exceed a maximum.

    Args:
        groups: The groups.
        max_tokens: The maximum number of tokens of a part with several sequences.

    Returns:
        The groups that fit, and the parts of the others.
    """
    found = []
    for group in groups:
        rest: PackedGroup | None = group
        while rest is not None:
            division = rest.divided(max_tokens) if rest.tokens > max_tokens else None
            if division is None and rest.tokens > max_tokens and len(rest.members) > 1:
                # Not even one sequence fits.
                division = rest.first_alone()
            taken, rest = division or (rest, None)
            found.append(taken)
    return found


def _spread(groups: Sequence[PackedGroup], num_parts: int, max_tokens: int) -> list[list[PackedGroup]] | None:
    """Pack whole groups into a number of parts, as equally as possible; None if they don't fit or are too few."""
    if len(groups) < num_parts:
        return None
    parts = _packed([group.tokens for group in groups], num_parts, max_tokens)
    return None if parts is None else [[groups[number] for number in part] for part in parts]


def _with_divided_groups(
    groups: Sequence[PackedGroup], num_parts: int, max_tokens: int
) -> list[list[PackedGroup]] | None:
    """Pack groups into a number of parts, and divide those that don't fit whole; None if that fails."""
    parts: list[list[PackedGroup]] = []
    # The room that is left in each part, in ascending order, with the number of the part.
    rooms: list[tuple[int, int]] = []
    left = []
    queue = sorted(groups, key=lambda group: group.tokens)
    while queue:
        group = queue.pop()
        place = bisect_left(rooms, (group.tokens, -1))
        if place < len(rooms):
            room, part = rooms.pop(place)
            parts[part].append(group)
            insort(rooms, (room - group.tokens, part))
        elif len(parts) < num_parts:
            if group.tokens > max_tokens and len(group.members) > 1:
                group, rest = group.divided(max_tokens) or group.first_alone()
                insort(queue, rest, key=lambda group: group.tokens)
            insort(rooms, (max_tokens - group.tokens, len(parts)))
            parts.append([group])
        else:
            left.append(group)
    for group in left:
        remaining: PackedGroup | None = group
        while remaining is not None:
            room, part = rooms.pop()
            if remaining.tokens <= room:
                taken, remaining = remaining, None
            elif (division := remaining.divided(room)) is not None:
                taken, remaining = division
            else:
                # No smaller room takes any of its sequences.
                return None
            parts[part].append(taken)
            insort(rooms, (room - taken.tokens, part))
    return parts if len(parts) == num_parts else None


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
        The indices of the sequences of each micro-batch. Every sequence occurs once. Micro-batches are empty only if
        there are fewer sequences.
    """
    parts: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= max_tokens:
            parts[-1].append(number)
        else:
            parts.append([number])
    agreed = num_parts_agreed(len(parts))
    while len(parts) < min(agreed, len(lengths)):
        largest = max(
            range(len(parts)), key=lambda number: (len(parts[number]) > 1, _padded_tokens(parts[number], lengths))
        )
        part = parts.pop(largest)
        parts += [part[: len(part) // 2], part[len(part) // 2 :]]
    parts.sort(key=lambda part: -_padded_tokens(part, lengths))
    return [*(sorted(part) for part in parts), *([] for _ in range(agreed - len(parts)))]


def _padded_tokens(part: Sequence[int], lengths: Sequence[int]) -> int:
    return len(part) * max(lengths[number] for number in part)


def _count_whole(sizes: Sequence[int], max_tokens: int) -> int:
    """Return the smallest number of micro-batches found for whole groups of these numbers of tokens."""
    least = least_micro_batches(sizes, max_tokens)
    most = len(_best_fit(sizes, len(sizes), max_tokens, fills_all=False) or sizes)
    for num_parts in range(least, most):
        if _packed(sizes, num_parts, max_tokens) is not None:
            return num_parts
    return most


def least_micro_batches(sizes: Sequence[int], max_tokens: int) -> int:
    """Return a number of micro-batches below which whole groups of these numbers of tokens never fit."""
    if not sizes:
        return 0
    # Two groups of more than half a micro-batch never fit together.
    num_large = sum(2 * size > max_tokens for size in sizes)
    most_per_part, used = 0, 0
    for size in sorted(sizes):
        used += size
        if used > max_tokens:
            break
        most_per_part += 1
    num_parts = max(1, num_large, -(-len(sizes) // max(1, most_per_part)), -(-sum(sizes) // max_tokens))
    return min(len(sizes), num_parts)


def _packed(sizes: Sequence[int], num_parts: int, max_tokens: int) -> list[list[int]] | None:
    """Distribute groups over parts within the maximum, as equally as possible; None if no way is found."""
    parts = _balanced(sizes, num_parts)
    if all(len(part) == 1 or sum(sizes[number] for number in part) <= max_tokens for part in parts):
        return parts
    return _best_fit(sizes, num_parts, max_tokens)


def _best_fit(
    sizes: Sequence[int], num_parts: int, max_tokens: int, *, fills_all: bool = True
) -> list[list[int]] | None:
    """Distribute groups over parts, the largest first, each to the fullest part with room.

    Args:
        sizes: The number of tokens of each group.
        num_parts: The number of parts.
        max_tokens: The maximum number of tokens of a part.
        fills_all: Whether no part may stay empty. Otherwise, there can be fewer parts.

    Returns:
        The numbers of the groups of each part, or None if they don't fit.
    """
    parts: list[list[int]] = []
    # The room that is left in each part, in ascending order, with the number of the part.
    rooms: list[tuple[int, int]] = []
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    for position, number in enumerate(order):
        place = bisect_left(rooms, (sizes[number], -1))
        must_start = fills_all and len(order) - position <= num_parts - len(parts)
        if place < len(rooms) and not must_start:
            room, part = rooms.pop(place)
            parts[part].append(number)
            insort(rooms, (room - sizes[number], part))
        elif len(parts) < num_parts:
            insort(rooms, (max_tokens - sizes[number], len(parts)))
            parts.append([number])
        else:
            return None
    return [sorted(part) for part in parts]


def _balanced(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Distribute groups over parts, the largest first, each to the part with the fewest tokens."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    # Empty parts first, because none may stay empty.
    by_use = [(False, 0, part) for part in range(num_parts)]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        _, used, part = by_use[0]
        parts[part].append(number)
        heapq.heapreplace(by_use, (True, used + sizes[number], part))
    return [sorted(part) for part in parts]


def _with_largest_part_halved(parts: list[list[PackedGroup]]) -> list[list[PackedGroup]]:
    """Divide the largest part with several sequences, between its groups if it has several."""
    sizes = [sum(group.tokens for group in part) for part in parts]
    counts = [sum(len(group.members) for group in part) for part in parts]
    number = max(range(len(parts)), key=lambda number: (counts[number] > 1, sizes[number]))
    part = parts[number]
    if len(part) > 1:
        first, second = ([part[i] for i in half] for half in _balanced([group.tokens for group in part], 2))
    else:
        first, second = ([half] for half in part[0].halves())
    return [*parts[:number], *parts[number + 1 :], first, second]
