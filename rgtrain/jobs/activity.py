"""Record the current phase of a long job, its step and its progress."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

# Keeps the report short if many sources are at different places.
_MAX_PLACES = 3
# Within these seconds, a late report may still belong to the previous phase.
_LATE_SECONDS = 1.0


@dataclass
class _Rounds:
    """The share of the current round that a source has done, and the number of its finished rounds."""

    share: float = 0.0
    num_finished: int = 0


class Activity:
    """The innermost phase of a job and a count of its signs of progress. Thread-safe to read and write.

    Attributes:
        phase: The innermost phase.
        began_at: The time of `time.monotonic` at which it began or was resumed after an inner phase.
        step: The step of the job, 0 before the first.
        num_moves: The number of signs of progress so far.
    """

    def __init__(self, labels: Mapping[str, str] | None = None):
        """Begin in the phase "start" of step 0.

        Args:
            labels: The printed names of phases. A phase without one is printed under its own name.
        """
        self.phase = "start"
        self.step = 0
        self.num_moves = 0
        self._labels = labels or {}
        self._begin_phase("start")

    def _begin_phase(self, phase: str) -> None:
        self.phase = phase
        self.began_at = time.monotonic()
        self._places: dict[str, str] = {}
        self._rounds: dict[str, _Rounds] = {}

    def moved(self, place: str | None = None, *, source: str = "", share: float | None = None) -> None:
        """Note that the job has made progress.

        Args:
            place: The position that was reached, for example "micro-batch 3 of 22".
            source: The part of the job that reached it, for example "worker 0". Leave it out if there is only one.
            share: The share that is done, from 0 to 1. If it falls, the source has begun another round, such as the
                next mini-batch.
        """
        if place is not None:
            self._places[source] = place
        if share is not None and time.monotonic() - self.began_at >= _LATE_SECONDS:
            rounds = self._rounds.setdefault(source, _Rounds())
            rounds.num_finished += share < rounds.share
            rounds.share = share
        self.num_moves += 1

    def num_rounds(self) -> float | None:
        """Return the mean number of rounds that the sources have done in this phase, None if no share was reported."""
        rounds = list(self._rounds.values())
        return fmean(one.num_finished + one.share for one in rounds) if rounds else None

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Make `phase` the current phase for the duration of the block.

        If the block raises, the phase stays, so that the error message can name it.
        """
        outer = self.phase
        self._begin_phase(phase)
        self.moved()
        try:
            yield
            self._begin_phase(outer)
        finally:
            self.moved()

    def place(self) -> str:
        """Return the position within the current phase.

        Returns:
            The reported place, or an empty string if none was reported. If sources are at different places, each place
            is listed with its sources, the most common place first.
        """
        sources: dict[str, list[str]] = {}
        for source, place in list(self._places.items()):
            sources.setdefault(place, []).append(source)
        if len(sources) <= 1:
            return "".join(sources)
        common_first = sorted(sources, key=lambda place: -len(sources[place]))
        named = [f"{place} ({', '.join(sources[place][:_MAX_PLACES])})" for place in common_first[:_MAX_PLACES]]
        return "; ".join(named)

    def __str__(self) -> str:
        label = self._labels.get(self.phase, self.phase)
        return f"{label} of step {self.step}" if self.step else label
