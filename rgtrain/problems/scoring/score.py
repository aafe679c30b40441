"""What judging an answer gives."""

from typing import NamedTuple


class Score(NamedTuple):
    """How one answer was judged: accuracy in [0, 1], why it could not be judged if so, and seconds it took.

    error: None, "timeout", "memory", "crash" (the process judging it ended), "exception: NAME" (its scorer raised)
    or "too long". Wherever there is one, accuracy is 0.
    """

    accuracy: float
    error: str | None = None
    seconds: float = 0.0

    @property
    def failure(self) -> str | None:
        """The kind of error, one of `FAILURES`, or None."""
        return self.error.split(":")[0] if self.error else None


FAILURES = ("timeout", "memory", "crash", "exception", "too long")
