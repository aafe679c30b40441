"""The current phase of a long job, its step, and signs of progress."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# A report names no more places than these.
_MAX_PLACES = 3


class Activity:
    """The innermost phase that a job is in, and how often anything has moved. Any thread may write, any may read."""

    def __init__(self, labels: Mapping[str, str] | None = None):
        """Begin in the phase "start" of step 0.

        Args:
            labels: How to print phases whose names are not meant for people.
        """
        self.phase = "start"
        self.step = 0
        self.num_moves = 0
        self._labels = labels or {}
        self._places: dict[str, str] = {}

    def moved(self, place: str | None = None, *, source: str = "") -> None:
        """Note that the job has made progress.

        Args:
            place: How far it has got, for example "micro-batch 3 of 22".
            source: Who has got there, if there are several, for example "worker 0".
        """
        if place is not None:
            self._places[source] = place
        self.num_moves += 1

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Make `phase` the current phase for the duration of the block.

        After a failure the phase stays, so that the error message can name it.
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
        """How far the current phase has got as text, empty if nothing has reported it.

        If sources are at different places, those with the most sources come first and the sources are named.
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
