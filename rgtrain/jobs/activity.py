"""Record the current phase of a long job, its step and its progress."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Keeps the report short if many sources are at different places.
_MAX_PLACES = 3


class Activity:
    """The innermost phase of a job and a count of its signs of progress. Thread-safe to read and write."""

    def __init__(self, labels: Mapping[str, str] | None = None):
        """Begin in the phase "start" of step 0.

        Args:
            labels: The printed names of phases. A phase without one is printed under its own name.
        """
        self.phase = "start"
        self.step = 0
        self.num_moves = 0
        self._labels = labels or {}
        self._places: dict[str, str] = {}

    def moved(self, place: str | None = None, *, source: str = "") -> None:
        """Note that the job has made progress.

        Args:
            place: The position that was reached, for example "micro-batch 3 of 22".
            source: The part of the job that reached it, for example "worker 0". Leave it out if there is only one.
        """
        if place is not None:
            self._places[source] = place
        self.num_moves += 1

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Make `phase` the current phase for the duration of the block.

        If the block raises, the phase stays, so that the error message can name it.
        """
        outer, self.phase = self.phase, phase
        self._places = {}
        self.moved()
        try:
            yield
            self.phase = outer
            self._places = {}
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
