"""Divide the samples of a batch over ranks, with whole groups, balanced work and few micro-batches.

A rank computes the prompt of a group once, however many of its completions it has. A group that is scattered over ranks
therefore costs one prompt per rank, and its fragments fill micro-batches badly. Here, groups stay whole, and ranks may
have different numbers of samples.

A group is divided in three cases only: it does not fit into a micro-batch, there are fewer groups than ranks, or the
busiest rank would otherwise do over `_TOLERANCE` times the mean work.
"""

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from rgtrain.training.update.micro_batches import PackedGroup, divided_to_fit, least_micro_batches, packed

# The work of the busiest rank, divided by the mean, above which groups are divided. Each part repeats the prompt.
_TOLERANCE = 1.1
# Moving groups between ranks ends below this ratio, because lengths predict the time of a rank no better.
_BALANCED = 1.01


@dataclass(frozen=True)
class WorkModel:
    """Floating-point operations of a forward pass, which determine the balance. A backward pass takes twice as many.

    The default has the proportions of a 7B model (hidden size 4,096).

    Attributes:
        token: Operations per token of the layers' matrix products.
        response_token: Further operations per completion token, for its logits.
        pair: Operations of attention per pair of a token and a token that it sees.
    """

    token: float = 24576.0
    response_token: float = 0.0
    pair: float = 2.0

    @classmethod
    def of_decoder(
        cls, *, num_layers: int, layer_params: int, query_width: int, hidden: int, vocab: int
    ) -> "WorkModel":
        """Return the work of a decoder.

        Args:
            num_layers: The number of layers.
            layer_params: The number of parameters of a layer that a token uses.
            query_width: The values per token of the queries of all heads.
            hidden: The width of the hidden state.
            vocab: The size of the vocabulary.

        Returns:
            Two operations per parameter and token, and four per value of a query and pair (scores and their products
            with the values), as in Narayanan et al., arXiv 2104.04473.
        """
        return cls(2.0 * num_layers * layer_params, 2.0 * vocab * hidden, 4.0 * num_layers * query_width)

    def prompt(self, length: int) -> float:
        """Return the work of a prompt."""
        return self.token * length + self.pair * length * (length + 1) / 2

    def response(self, prompt_length: int, length: int) -> float:
        """Return the work of a completion behind its prompt."""
        pairs = length * prompt_length + length * (length + 1) / 2
        return (self.token + self.response_token) * length + self.pair * pairs


@dataclass(frozen=True)
class SampleLengths:
    """The samples of a batch in the order of drawing, one element of each sequence per sample.

    Attributes:
        groups: The name of the sample's group. Samples of a group have the same prompt.
        prompts: The number of tokens of the prompt.
        responses: The number of tokens of the completion.
    """

    groups: tuple[str, ...]
    prompts: tuple[int, ...]
    responses: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.groups)


@dataclass(frozen=True)
class MiniBatch:
    """One rank's part of a mini-batch.

    Attributes:
        rows: The rank's samples, as positions in `RankShare.samples`.
        num_samples: The number of samples of all ranks.
        num_tokens: The lengths of the sequences of all ranks.
        counts: Whether the samples count. A rank without samples computes one of another rank with a loss of 0, because
            all ranks gather parameters together.
    """

    rows: list[int]
    num_samples: int
    num_tokens: list[int]
    counts: bool = True


@dataclass(frozen=True)
class RankShare:
    """One rank's samples, as positions in the batch, and its part of each mini-batch in the order of the updates."""

    samples: list[int]
    mini_batches: list[MiniBatch] = field(default_factory=list)


@dataclass(frozen=True)
class RankBalance:
    """Divides samples over ranks.

    Attributes:
        num_ranks: The number of ranks.
        max_tokens: The maximum number of tokens of a micro-batch, or None if padding decides how micro-batches fill.
        work: The work of a sample.
        shares_prompts: Whether a rank computes the prompt of a group once. Otherwise, each sequence is a group.
    """

    num_ranks: int
    max_tokens: int | None
    work: WorkModel = WorkModel()
    shares_prompts: bool = True

    def shares(self, lengths: SampleLengths) -> list[RankShare]:
        """Divide a batch for a forward pass.

        Args:
            lengths: The samples.

        Returns:
            The share of each rank. None is empty: if there are fewer samples than ranks, some share a sample.
        """
        parts = self.divide(lengths, range(len(lengths)))
        return [RankShare(part or [_smallest(lengths, range(len(lengths)))]) for part in parts]

    def update_shares(
        self, lengths: SampleLengths, *, mini_batch_size: int, epochs: int = 1, shuffle_seed: int | None = None
    ) -> list[RankShare]:
        """Divide a batch for an update. Mini-batches are the same for every number of ranks.

        Args:
            lengths: The samples.
            mini_batch_size: The maximum number of samples of a mini-batch, which holds whole groups.
            epochs: The number of passes over the batch.
            shuffle_seed: The seed by which each epoch takes the groups in another order, or None for the order of
                drawing.

        Returns:
            The share of each rank, with its part of each mini-batch. No part is empty.
        """
        generator = random.Random(shuffle_seed)
        rows: list[dict[int, int]] = [{} for _ in range(self.num_ranks)]
        planned: list[list[MiniBatch]] = [[] for _ in range(self.num_ranks)]
        # Without shuffling, all epochs are equal.
        for _ in range(1 if shuffle_seed is None else epochs):
            groups = list(_by_group(lengths, range(len(lengths))).values())
            if shuffle_seed is not None:
                generator.shuffle(groups)
            for members in _cut(groups, mini_batch_size):
                num_tokens = [lengths.prompts[i] + lengths.responses[i] for i in members]
                for rank, part in enumerate(self.divide(lengths, members)):
                    taken = part or [_smallest(lengths, members)]
                    own_rows = [rows[rank].setdefault(sample, len(rows[rank])) for sample in taken]
                    planned[rank].append(MiniBatch(own_rows, len(members), num_tokens, counts=bool(part)))
        repeats = epochs if shuffle_seed is None else 1
        return [RankShare(list(own), parts * repeats) for own, parts in zip(rows, planned, strict=True)]

    def divide(self, lengths: SampleLengths, members: Sequence[int]) -> list[list[int]]:
        """Divide some samples of a batch over ranks.

        Args:
            lengths: The samples of the batch.
            members: The positions of the samples to divide.

        Returns:
            The positions of each rank's samples, in the order of the batch. Each sample occurs once. A rank is empty
            only if there are fewer samples than ranks.
        """
        if self.num_ranks == 1:
            return [sorted(members)]
        return [list(part) for part in _divided(self, lengths, tuple(members))]


# Calls of a step with the same budget divide the same samples.
@lru_cache(maxsize=4)
def _divided(balance: RankBalance, lengths: SampleLengths, members: tuple[int, ...]) -> list[list[int]]:
    division = _Division(balance, lengths, members)
    division.swap()
    division.split()
    return division.samples()


def _by_group(lengths: SampleLengths, members: Sequence[int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i in members:
        groups.setdefault(lengths.groups[i], []).append(i)
    return groups


def _cut(groups: Sequence[list[int]], size: int) -> list[list[int]]:
    """Return mini-batches of whole groups with at most `size` samples, or one group if it alone has more."""
    mini_batches: list[list[int]] = []
    for group in groups:
        if mini_batches and len(mini_batches[-1]) + len(group) <= size:
            mini_batches[-1].extend(group)
        else:
            mini_batches.append(list(group))
    return mini_batches


def _smallest(lengths: SampleLengths, members: Sequence[int]) -> int:
    return min(members, key=lambda i: lengths.prompts[i] + lengths.responses[i])


class _Item:
    """Samples of one group that stay together, with their tokens and work."""

    __slots__ = ("samples", "tokens", "work")

    def __init__(self, samples: list[int], tokens: int, work: float):
        self.samples, self.tokens, self.work = samples, tokens, work


class _Division:
    """A division of groups over ranks, which `swap` and `split` improve."""

    def __init__(self, balance: RankBalance, lengths: SampleLengths, members: Sequence[int]):
        self._balance, self._lengths = balance, lengths
        self._num_ranks, self._max_tokens = balance.num_ranks, balance.max_tokens
        if balance.shares_prompts:
            items = [item for group in _by_group(lengths, members).values() for item in self._items_of(group)]
        else:
            items = [self._item([i]) for i in members]
        self._ranks = self._assigned(items)
        self._work = [sum(item.work for item in items) for items in self._ranks]
        self._num_micro_batches = max(map(self._count, self._ranks))

    def _item(self, samples: list[int]) -> _Item:
        lengths, work = self._lengths, self._balance.work
        prompt = lengths.prompts[samples[0]]
        responses = [lengths.responses[i] for i in samples]
        total = work.prompt(prompt) + sum(work.response(prompt, response) for response in responses)
        return _Item(samples, prompt + sum(responses), total)

    def _packed_group(self, samples: Sequence[int]) -> PackedGroup:
        lengths = self._lengths
        return PackedGroup(lengths.prompts[samples[0]], [lengths.responses[i] for i in samples], samples)

    def _items_of(self, group: list[int]) -> list[_Item]:
        """Return a group as parts that fit into a micro-batch."""
        if self._max_tokens is None:
            return [self._item(group)]
        parts = divided_to_fit([self._packed_group(group)], self._max_tokens)
        return [self._item(list(part.members)) for part in parts]

    def _assigned(self, items: list[_Item]) -> list[list[_Item]]:
        """Assign items, the largest first, each to the rank with the least work that has room for it."""
        items = sorted(items, key=lambda item: -item.work)
        if self._max_tokens is None:
            num_micro_batches = len(items)
        else:
            needed = least_micro_batches([item.tokens for item in items], self._max_tokens)
            num_micro_batches = -(-needed // self._num_ranks)
        while (ranks := self._with_room(items, num_micro_batches)) is None:
            num_micro_batches += 1
        return ranks

    def _with_room(self, items: list[_Item], num_micro_batches: int) -> list[list[_Item]] | None:
        """Assign items to ranks with this number of micro-batches each; None if they don't fit."""
        max_tokens = self._max_tokens
        ranks: list[list[_Item]] = [[] for _ in range(self._num_ranks)]
        # The room that is left in each started micro-batch of a rank, in ascending order.
        rooms: list[list[int]] = [[] for _ in range(self._num_ranks)]
        by_work = [(0.0, rank) for rank in range(self._num_ranks)]
        for item in items:
            passed = []
            while by_work:
                work, rank = heapq.heappop(by_work)
                if max_tokens is None or _take_room(rooms[rank], item.tokens, max_tokens, num_micro_batches):
                    break
                passed.append((work, rank))
            else:
                return None
            ranks[rank].append(item)
            for entry in (*passed, (work + item.work, rank)):
                heapq.heappush(by_work, entry)
        return ranks

    def _count(self, items: list[_Item]) -> int:
        if self._max_tokens is None:
            return 1
        if self._balance.shares_prompts:
            # Parts of a group on the same rank are one group.
            members = sorted(i for item in items for i in item.samples)
            sequences: Iterable[list[int]] = _by_group(self._lengths, members).values()
        else:
            sequences = (item.samples for item in items)
        return len(packed([self._packed_group(own) for own in sequences], self._max_tokens))

    @property
    def _mean(self) -> float:
        return sum(self._work) / self._num_ranks

    def swap(self) -> None:
        """Move or swap items of the busiest rank as long as that relieves it without further micro-batches."""
        # The bound only limits the time.
        for _ in range(8 * self._num_ranks):
            *others, busiest = sorted(range(self._num_ranks), key=self._work.__getitem__)
            if self._work[busiest] <= _BALANCED * self._mean:
                return
            if not any(self._relieve(busiest, other) for other in others):
                return

    def _relieve(self, busiest: int, other: int) -> bool:
        """Exchange the pair of items that brings two ranks closest; return whether there was one."""
        gap = self._work[busiest] - self._work[other]
        given = sorted(self._ranks[busiest], key=lambda item: item.work)
        # Nothing is also a choice.
        taken = [None, *sorted(self._ranks[other], key=lambda item: item.work)]
        taken_work = [0.0, *(item.work for item in taken[1:])]  # type: ignore[union-attr]
        choices = []
        for item in given:
            # The item in return whose work differs from this one's by about half the gap.
            place = bisect_left(taken_work, item.work - gap / 2)
            for number in (place - 1, place):
                if 0 <= number < len(taken):
                    moved = item.work - taken_work[number]
                    if 0.01 * gap < moved < 0.99 * gap:
                        choices.append((abs(moved - gap / 2), item.samples[0], item, taken[number]))
        for _, _, item, back in sorted(choices, key=lambda choice: choice[:2])[:4]:
            ours = [*(one for one in self._ranks[busiest] if one is not item), *([back] if back else [])]
            theirs = [*(one for one in self._ranks[other] if one is not back), item]
            if ours and self._fit(ours, theirs):
                self._replace(busiest, ours)
                self._replace(other, theirs)
                return True
        return False

    def _fit(self, *ranks: list[_Item]) -> bool:
        return all(self._count(items) <= self._num_micro_batches for items in ranks)

    def _replace(self, rank: int, items: list[_Item]) -> None:
        self._ranks[rank] = items
        self._work[rank] = sum(item.work for item in items)

    def split(self) -> None:
        """Give a part of a group of the busiest rank to the least busy one while ranks are empty or far from equal."""
        if not self._balance.shares_prompts:
            return
        for _ in range(4 * self._num_ranks):
            idle = min(range(self._num_ranks), key=self._work.__getitem__)
            is_empty = not self._ranks[idle]
            if not is_empty and max(self._work) <= _TOLERANCE * self._mean:
                return
            *others, busiest = sorted(range(self._num_ranks), key=self._work.__getitem__)
            if not any(self._give_part(rank, idle) for rank in ((busiest, *others[::-1]) if is_empty else (busiest,))):
                return

    def _give_part(self, busiest: int, idle: int) -> bool:
        is_empty = not self._ranks[idle]
        choices = []
        for item in self._ranks[busiest]:
            if len(item.samples) == 1:
                continue
            kept, given = self._halves(item, self._work[busiest] - item.work, self._work[idle])
            given_items = self._merged(self._ranks[idle], given)
            kept_items = [kept if one is item else one for one in self._ranks[busiest]]
            most = max(sum(one.work for one in kept_items), sum(one.work for one in given_items))
            choices.append((most, item.samples[0], kept_items, given_items))
        for most, _, kept_items, given_items in sorted(choices, key=lambda choice: choice[:2]):
            # A part that hardly helps would only repeat a prompt.
            if is_empty or (most < 0.98 * self._work[busiest] and self._fit(kept_items, given_items)):
                self._replace(busiest, kept_items)
                self._replace(idle, given_items)
                self._num_micro_batches = max(self._num_micro_batches, *map(self._count, (kept_items, given_items)))
                return True
        return False

    def _halves(self, item: _Item, other_kept: float, other_given: float) -> tuple[_Item, _Item]:
        """Divide an item so that it and the other work of two ranks are about equal."""
        kept, given = list(item.samples), list[int]()
        lengths, work = self._lengths, self._balance.work
        prompt = lengths.prompts[kept[0]]
        kept_work, given_work = other_kept + item.work, other_given + work.prompt(prompt)
        for i in sorted(item.samples, key=lambda i: -lengths.responses[i]):
            moved = work.response(prompt, lengths.responses[i])
            if len(kept) > 1 and (not given or max(given_work + moved, kept_work - moved) < max(given_work, kept_work)):
                kept.remove(i)
                given.append(i)
                kept_work, given_work = kept_work - moved, given_work + moved
        return self._item(kept), self._item(sorted(given))

    def _merged(self, items: list[_Item], part: _Item) -> list[_Item]:
        """Return a rank's items with another part, which joins a part of the same group if both fit."""
        group = self._lengths.groups[part.samples[0]]
        for number, item in enumerate(items):
            if self._lengths.groups[item.samples[0]] == group:
                joined = self._item(sorted([*item.samples, *part.samples]))
                if self._max_tokens is None or joined.tokens <= self._max_tokens:
                    return [*items[:number], joined, *items[number + 1 :]]
        return [*items, part]

    def samples(self) -> list[list[int]]:
        """Return the samples of each rank in the order of the batch."""
        return [sorted(i for item in items for i in item.samples) for items in self._ranks]


def _take_room(rooms: list[int], tokens: int, max_tokens: int, max_micro_batches: int) -> bool:
    """Put an item into the fullest micro-batch with room for it, or start one; return False if neither is possible."""
    place = bisect_left(rooms, tokens)
    if place < len(rooms):
        insort(rooms, rooms.pop(place) - tokens)
        return True
    if len(rooms) < max_micro_batches:
        insort(rooms, max(0, max_tokens - tokens))
        return True
    return False
