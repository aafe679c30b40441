"""The result of judging an answer, or of calling an own reward function."""

from typing import NamedTuple


class Score(NamedTuple):
    """The score of an answer, or the values of a reward function.

    Attributes:
        accuracy: In [0, 1]; 0 if there is an error.
        error: None, "timeout", "memory", "crash" (the worker exited, or was killed several times), "exception: NAME"
            (the scorer raised) or "too long".
        seconds: Wall-clock time of judging.
        values: The values of an own reward function; empty for an answer, and if there is an error.
        message: The message of the exception that an own reward function raised.
    """

    accuracy: float
    error: str | None = None
    seconds: float = 0.0
    values: tuple[float, ...] = ()
    message: str = ""

    @property
    def failure(self) -> str | None:
        """The kind of error, one of `FAILURES`, or None."""
        return self.error.split(":")[0] if self.error else None


FAILURES = ("timeout", "memory", "crash", "exception", "too long")
