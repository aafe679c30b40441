"""Identifiers from which an environment makes a problem again, also after a restart and on another machine."""

from dataclasses import dataclass

from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import MAX_SPLIT_SIZE, Problem

_FORM = "DATASET:SPLIT:SEED:POSITION:LEVEL:DIGEST"
_NO_LEVEL = "none"
_MAX_CHARS = 300


class UnknownProblem(ConfigError):
    """An identifier names no problem of the environment."""


@dataclass(frozen=True)
class ProblemId:
    """The identity of a problem: enough to make it again, with a digest of its content.

    With the digest, an environment recognises an identifier of other parameters or of another version of the datasets.

    Attributes:
        dataset: The name of the dataset in the mixture.
        split: "train" or "validation".
        seed: The environment's seed.
        position: The problem's index in its dataset.
        level: The level in the dataset's curriculum, or None.
        digest: `Problem.digest`.
    """

    dataset: str
    split: str
    seed: int
    position: int
    level: int | None
    digest: str

    @classmethod
    def of(cls, problem: Problem, *, split: str, seed: int) -> "ProblemId":
        """Return the identity of a problem of an environment with this seed."""
        return cls(problem.dataset, split, seed, problem.index, problem.level, problem.digest)

    @classmethod
    def parse(cls, text: str) -> "ProblemId":
        """Parse an identifier, which is untrusted text.

        Args:
            text: The text that `str` returned for a ProblemId.

        Returns:
            The identity.

        Raises:
            UnknownProblem: The text has another form.
        """
        parts = text.rsplit(":", 5) if len(text) <= _MAX_CHARS else []
        if len(parts) == 6:
            dataset, split, seed, position, level, digest = parts
            try:
                parsed = cls(
                    dataset, split, int(seed), int(position), None if level == _NO_LEVEL else int(level), digest
                )
            except ValueError:
                pass
            else:
                # Each problem has one identifier, so forms such as "+1" or "01" of a number are refused.
                if str(parsed) == text and 0 <= parsed.position < MAX_SPLIT_SIZE:
                    return parsed
        raise UnknownProblem(f"{text[:100]!r} is no problem id; give an id of this environment, of the form {_FORM}")

    def __str__(self) -> str:
        level = _NO_LEVEL if self.level is None else self.level
        return f"{self.dataset}:{self.split}:{self.seed}:{self.position}:{level}:{self.digest}"
