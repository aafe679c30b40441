"""The result of judging an answer."""

from typing import NamedTuple


class Score(NamedTuple):
    """The score of an answer.

    Attributes:
        accuracy: In [0, 1]; 0 if there is an error.
        error: None, "timeout", "memory", "crash" (the worker exited, or was killed several times), "exception: NAME"
            (the scorer raised) or "too long".
        seconds: Wall-clock time of judging.
    """

    accuracy: float
    error: str | None = None
    seconds: float = 0.0

    @property
    def failure(self) -> str | None:
        """The kind of error, one of `FAILURES`, or None."""
        return self.error.split(":")[0] if self.error else None


FAILURES = ("timeout", "memory", "crash", "exception", "too long")
