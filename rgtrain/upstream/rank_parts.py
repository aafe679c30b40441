"""A batch that is already divided over ranks, in place of verl's division into equal parts."""

from collections.abc import Callable, Sequence
from typing import Any

# The key of a rank's part under which the trainer sends the mini-batches of an update.
MINI_BATCHES = "mini_batches"


class RankParts:
    """A batch for verl's worker groups, given by the part of each rank.

    Attributes:
        parts: The part of each rank. They can differ in size.
    """

    def __init__(self, parts: Sequence[Any]):
        self.parts = list(parts)

    def chunk(self, chunks: int) -> list[Any]:
        """Return the parts, for verl's dispatch to `chunks` ranks.

        Args:
            chunks: The number of ranks.

        Returns:
            The part of each rank.

        Raises:
            ValueError: There is another number of ranks.
        """
        if len(self.parts) != chunks:
            raise ValueError(f"a batch was divided over {len(self.parts)} ranks, but there are {chunks}")
        return self.parts


def chunkable_types(original: Callable[[], tuple[type, ...]]) -> "staticmethod[[], tuple[type, ...]]":
    """Wrap verl's list of types that can be divided over workers so that it has RankParts."""
    return staticmethod(lambda: (*original(), RankParts))
