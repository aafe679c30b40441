"""Divide the completions of prompts over engines: one queue for all engines, the longest expected completions first.

An engine's time grows with the tokens that it generates, so engines get equal shares of the expected tokens. All
completions start as early as they can, because the longest one determines the end. The queue therefore holds only
those for which no engine has room.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rgtrain.training.rollout.groups import PartKey, PartRequest

# An engine gets further completions once it has no more than it can decode together, and then this share in addition.
# These wait in the engine, so it has a full batch until the next ones arrive.
_RESERVE = 1 / 16
# The assumed length of a completion before the first lengths are known.
_UNKNOWN_TOKENS = 256.0
# The time to read a token of a prompt, as a share of the time to generate one. Engines read many tokens at once.
_READING_SHARE = 1 / 16


class EngineCapacity(NamedTuple):
    """The sequences that an engine decodes together.

    Attributes:
        max_num_seqs: The maximum number of sequences.
        max_cached_tokens: The number of tokens that its KV cache holds; None if it is unknown.
    """

    max_num_seqs: int
    max_cached_tokens: int | None = None


class ExpectedLengths:
    """Running means of response lengths by dataset and level, from earlier training steps.

    The lengths of a step count half as much once a later step has lengths of the same dataset and level. Within a
    step, the expectation does not change, so it does not depend on the order in which groups finish.
    """

    def __init__(self) -> None:
        # Weighted sums of tokens and of completions.
        self._sums: dict[tuple[str, Hashable], tuple[float, float]] = {}
        self._new: dict[tuple[str, Hashable], list[int]] = defaultdict(list)

    def observe(self, dataset: str, level: Hashable, lengths: Iterable[int]) -> None:
        """Add the lengths of responses, in tokens. They count from the next step on."""
        self._new[dataset, level].extend(lengths)

    def begin_step(self) -> None:
        """Let the lengths observed since the last call count."""
        for pair, lengths in self._new.items():
            tokens, weight = self._sums.get(pair, (0.0, 0.0))
            self._sums[pair] = tokens / 2 + sum(lengths), weight / 2 + len(lengths)
        self._new.clear()

    def of(self, dataset: str, level: Hashable) -> float | None:
        """Return the expected length of a response.

        Args:
            dataset: The name of the prompt's dataset.
            level: The prompt's level.

        Returns:
            The mean of the dataset's level in tokens; without one, the mean of the dataset or else of all datasets.
            None before the second step.
        """
        if (dataset, level) in self._sums:
            sums = [self._sums[dataset, level]]
        else:
            sums = [value for pair, value in self._sums.items() if pair[0] == dataset] or [*self._sums.values()]
        weight = sum(weight for _, weight in sums)
        return sum(tokens for tokens, _ in sums) / weight if weight else None


class Dispatched(NamedTuple):
    """A group, or a part of it, that an engine is to generate.

    Attributes:
        engine: The number of the engine.
        batch: The batch of the prompt.
        part: The request.
    """

    engine: int
    batch: Any
    part: PartRequest


@dataclass
class _Waiting:
    """The completions of a prompt that no engine has taken."""

    batch: Hashable
    part: PartRequest
    expected: float

    @property
    def tokens(self) -> float:
        return self.expected * self.part.num_completions


@dataclass
class _InFlight:
    """A part that an engine is generating."""

    engine: "_Engine"
    batch: Hashable
    expected: float
    num_prompt_tokens: int
    num_unfinished: int = 0


class _Stopwatch:
    def __init__(self, now: Callable[[], float]):
        self._now = now
        self._since: float | None = None
        self._seconds = 0.0

    def run(self, is_running: bool) -> None:
        """Start or stop. A no-op if the state does not change."""
        if is_running and self._since is None:
            self._since = self._now()
        elif not is_running and self._since is not None:
            self._seconds += self._now() - self._since
            self._since = None

    @property
    def seconds(self) -> float:
        return self._seconds + (0.0 if self._since is None else self._now() - self._since)


@dataclass
class _Engine:
    number: int
    capacity: EngineCapacity
    num_unfinished: int = 0
    # The expected tokens of the unfinished completions, and those with the prompts.
    tokens: float = 0.0
    cached_tokens: float = 0.0

    @property
    def needs_more(self) -> bool:
        return self.num_unfinished <= self.capacity.max_num_seqs and self._has_cache

    @property
    def has_room(self) -> bool:
        reserve = max(1, int(_RESERVE * self.capacity.max_num_seqs))
        return self.num_unfinished < self.capacity.max_num_seqs + reserve and self._has_cache

    @property
    def _has_cache(self) -> bool:
        limit = self.capacity.max_cached_tokens
        # Without work, an engine takes even a group that is larger than its cache.
        return limit is None or not self.num_unfinished or self.cached_tokens < limit


class Dispatcher:
    """The queue of groups that wait for an engine, and the completions that each engine is generating.

    Args:
        num_engines: The number of engines.
        capacity: The capacity of each engine, until the engine reports its own.
        now: A clock in seconds.
    """

    def __init__(self, num_engines: int, capacity: EngineCapacity, *, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._engines = [_Engine(number, capacity) for number in range(num_engines)]
        self._waiting: list[_Waiting] = []
        self._in_flight: dict[PartKey, _InFlight] = {}
        self.begin_timing()

    @property
    def num_engines(self) -> int:
        """The number of engines."""
        return len(self._engines)

    @property
    def has_waiting(self) -> bool:
        """Whether groups wait for an engine."""
        return bool(self._waiting)

    def set_capacity(self, engine: int, capacity: EngineCapacity) -> None:
        """Set the capacity that an engine reported."""
        self._engines[engine].capacity = capacity

    def add(self, groups: Sequence[PartRequest], *, expected: Sequence[float | None], batch: Hashable) -> None:
        """Add groups to the queue, behind groups with longer expected completions.

        Args:
            groups: The groups in the order of drawing.
            expected: The expected length of each group's completions in tokens, or None if it is unknown.
            batch: The batch of the groups.
        """
        self._waiting += [
            _Waiting(batch, group, tokens or _UNKNOWN_TOKENS) for group, tokens in zip(groups, expected, strict=True)
        ]
        self._waiting.sort(key=lambda waiting: -waiting.expected)

    def take(self) -> list[Dispatched]:
        """Take groups from the queue for the engines that have room.

        Each group goes to the engine with the fewest expected tokens. A group is split if a whole one would give
        an engine more than its equal share of all tokens, which only happens at the end of the queue.

        Returns:
            The groups and parts in the order of dispatch.
        """
        engines = [engine for engine in self._engines if engine.needs_more]
        waiting_tokens = sum(waiting.tokens for waiting in self._waiting)
        equal_share = (sum(engine.tokens for engine in self._engines) + waiting_tokens) / len(self._engines)
        dispatched: list[Dispatched] = []
        num_taken = 0
        while num_taken < len(self._waiting) and (free := [engine for engine in engines if engine.has_room]):
            engine = min(free, key=lambda engine: engine.tokens)
            waiting = self._waiting[num_taken]
            room = (equal_share - engine.tokens) / waiting.expected
            taken, rest = _split(waiting, room)
            if rest is None:
                num_taken += 1
            else:
                self._waiting[num_taken] = rest
            dispatched.append(self._start(engine, taken))
        del self._waiting[:num_taken]
        return dispatched

    def deal(self, groups: Sequence[PartRequest], *, first: int, batch: Hashable) -> list[Dispatched]:
        """Give whole groups to the engines in turn, all at once, without the queue.

        Args:
            groups: The groups in the order of drawing.
            first: The number of groups that were dealt before in the same step. The turns continue after them, so small
                later batches do not all start at the first engine.
            batch: The batch of the groups.

        Returns:
            The groups in the order of drawing.
        """
        return [
            self._start(self._engines[number % len(self._engines)], _Waiting(batch, group, _UNKNOWN_TOKENS))
            for number, group in enumerate(groups, start=first)
        ]

    def completed(self, key: PartKey) -> None:
        """Note that one of a part's completions is finished."""
        self._change(self._in_flight[key], -1)

    def arrived(self, key: PartKey) -> None:
        """Note that a part is finished."""
        part = self._in_flight.pop(key)
        self._change(part, -part.num_unfinished)
        part.engine.cached_tokens -= part.num_prompt_tokens

    def withdraw(self, batch: Hashable) -> None:
        """Forget the groups of a batch that has ended, for example because of an error."""
        self._waiting = [waiting for waiting in self._waiting if waiting.batch != batch]
        for key in [key for key, part in self._in_flight.items() if part.batch == batch]:
            self.arrived(key)

    def begin_timing(self) -> None:
        """Measure `idle_share` from now on."""
        self._any_busy = _Stopwatch(self._now)
        self._busy = [_Stopwatch(self._now) for _ in self._engines]
        self._update_timing()

    @property
    def idle_share(self) -> float:
        """The share of the time with any completion in flight in which an engine had none, as the engines' mean."""
        busy = sum(stopwatch.seconds for stopwatch in self._busy)
        total = self._any_busy.seconds * len(self._busy)
        return max(0.0, 1 - busy / total) if total else 0.0

    def _start(self, engine: _Engine, taken: _Waiting) -> Dispatched:
        part = taken.part
        in_flight = _InFlight(engine, taken.batch, taken.expected, num_prompt_tokens=len(part.prompt_ids))
        self._in_flight[part.key] = in_flight
        engine.cached_tokens += in_flight.num_prompt_tokens
        self._change(in_flight, part.num_completions)
        return Dispatched(engine.number, taken.batch, part)

    def _change(self, part: _InFlight, num_completions: int) -> None:
        """Add unfinished completions to a part and its engine, or remove them if the number is negative."""
        part.num_unfinished += num_completions
        part.engine.num_unfinished += num_completions
        part.engine.tokens += num_completions * part.expected
        part.engine.cached_tokens += num_completions * part.expected
        self._update_timing()

    def _update_timing(self) -> None:
        for engine, stopwatch in zip(self._engines, self._busy, strict=True):
            stopwatch.run(engine.num_unfinished > 0)
        self._any_busy.run(any(engine.num_unfinished for engine in self._engines))


def _split(waiting: _Waiting, room: float) -> tuple[_Waiting, _Waiting | None]:
    """Split the completions of a prompt, if there is room for only some of them.

    They stay together if reading the prompt once more takes longer than generating the completions that would move.

    Args:
        waiting: The completions.
        room: The number of completions up to the engine's equal share. If it is not above 0, all other engines are
            busy, and the completions stay together.

    Returns:
        The completions to take, and the rest or None.
    """
    part = waiting.part
    num_taken = max(1, round(room))
    num_moved = part.num_completions - num_taken
    reading = _READING_SHARE * len(part.prompt_ids)
    if room <= 0 or min(num_taken, num_moved) * waiting.expected <= reading:
        return waiting, None
    taken = part._replace(num_completions=num_taken)
    rest = PartRequest(PartKey(part.key.uid, part.key.first + num_taken), num_moved, part.prompt_ids)
    return _Waiting(waiting.batch, taken, waiting.expected), _Waiting(waiting.batch, rest, waiting.expected)
