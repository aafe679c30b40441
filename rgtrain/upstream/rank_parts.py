"""A batch that is already divided over ranks, in place of verl's division into equal parts."""

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import TensorDict

# The key of a rank's part under which the trainer sends the mini-batches of an update.
MINI_BATCHES = "mini_batches"


class RankParts(TensorDict):
    """A batch for verl's worker groups, given by the part of each rank.

    Args:
        parts: The part of each rank. They can differ in size.
    """

    def __init__(self, parts: Sequence[TensorDict]):
        super().__init__({}, batch_size=[])
        self.parts = list(parts)


def chunks(original: Callable[[TensorDict, int], Any]) -> Callable[[TensorDict, int], Any]:
    """Wrap verl's division of a batch so that a divided batch keeps its parts."""

    def chunk_tensordict(td: TensorDict, chunks: int) -> Any:
        if not isinstance(td, RankParts):
            return original(td, chunks)
        if len(td.parts) != chunks:
            raise ValueError(f"a batch was divided over {len(td.parts)} ranks, but there are {chunks}")
        return td.parts

    return chunk_tensordict
