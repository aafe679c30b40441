"""Shortcuts for a single worker, for which verl would take as long to divide a batch as for many workers."""

from collections.abc import Callable

from tensordict import TensorDict


def balanced_partitions(original: Callable[..., list[list[int]]]) -> Callable[..., list[list[int]]]:
    """Wrap verl's partition of samples over workers so that a single worker gets all samples at once."""

    def partitions(workloads: list[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
        if k_partitions == 1:
            return [list(range(len(workloads)))]
        return original(workloads, k_partitions=k_partitions, equal_size=equal_size)

    return partitions


def chunks(original: Callable[[TensorDict, int], list[TensorDict]]) -> Callable[[TensorDict, int], list[TensorDict]]:
    """Wrap verl's division of a batch so that a single part is the batch itself."""

    def chunk_tensordict(td: TensorDict, chunks: int) -> list[TensorDict]:
        return [td] if chunks == 1 else original(td, chunks)

    return chunk_tensordict
