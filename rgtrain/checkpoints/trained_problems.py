"""Record in each checkpoint which problems it was trained on, so that an evaluation can count those it shares.

The record is a text file with the digest of each distinct problem (see `Problem.digest`) in a line, 17 bytes long.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from rgtrain.checkpoints.untrusted_files import read_bounded
from rgtrain.errors import ConfigError

TRAINED_PROBLEMS = "trained_problems.txt"

# 15 million problems.
_MAX_BYTES = 2**28
_LINES = re.compile(rb"(?:[0-9a-f]{16}\n)*")


class TrainedProblems:
    """The distinct problems of a run so far, in the order of training.

    Args:
        digests: The digests of problems.
    """

    def __init__(self, digests: Iterable[str] = ()):
        self._digests = dict.fromkeys(digests)

    def add(self, digests: Iterable[str]) -> None:
        """Add the digests of the problems of a step."""
        self._digests.update(dict.fromkeys(digests))

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def write(self, folder: Path) -> None:
        """Write the record into the folder of a checkpoint."""
        (folder / TRAINED_PROBLEMS).write_text("".join(f"{digest}\n" for digest in self._digests), encoding="ascii")


def read_trained_problems(folder: Path) -> TrainedProblems | None:
    """Read the record of a checkpoint or of a model that was exported from one.

    Args:
        folder: The folder of the checkpoint or the model.

    Returns:
        The problems; None if there is no record.

    Raises:
        ConfigError: The record is damaged.
    """
    path = folder / TRAINED_PROBLEMS
    try:
        content = read_bounded(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    if not _LINES.fullmatch(content):
        raise ConfigError(f"{str(path)!r} is not a list of digests, with 16 hexadecimal digits in a line: remove it")
    return TrainedProblems(content.decode("ascii").split())
