"""Shortcuts for one worker: verl takes as long to divide a batch by one as by many."""

from collections.abc import Callable

from tensordict import TensorDict


def balanced_partitions(original: Callable[..., list[list[int]]]) -> Callable[..., list[list[int]]]:
    """Return verl's partition of samples over workers, at once if there is one."""

    def partitions(workloads: list[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
        if k_partitions == 1:
            return [list(range(len(workloads)))]
        return original(workloads, k_partitions=k_partitions, equal_size=equal_size)

    return partitions


def chunks(original: Callable[[TensorDict, int], list[TensorDict]]) -> Callable[[TensorDict, int], list[TensorDict]]:
    """Return verl's division of a batch, at once if there is one part."""

    def chunk_tensordict(td: TensorDict, chunks: int) -> list[TensorDict]:
        return [td] if chunks == 1 else original(td, chunks)

    return chunk_tensordict
