"""With one worker there is nothing to divide, and verl's ways of dividing a batch take as long as if there were."""

from tensordict import TensorDict
from verl.protocol import BatchData
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions
from verl.utils.tensordict_utils import chunk_tensordict


def _balanced_partitions(workloads: list[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
    """verl's puts every sample on a heap."""
    if k_partitions == 1:
        return [list(range(len(workloads)))]
    return get_seqlen_balanced_partitions(workloads, k_partitions=k_partitions, equal_size=equal_size)


def _chunks(td: TensorDict, chunks: int) -> list[TensorDict]:
    """verl's takes nested tensors apart and puts them together again."""
    return [td] if chunks == 1 else chunk_tensordict(td, chunks)


def install() -> None:
    """Put the quick ways in the place of verl's, in this process."""
    # Where verl calls them by other names, the replacements would do nothing.
    assert trainer_base.get_seqlen_balanced_partitions is get_seqlen_balanced_partitions
    trainer_base.get_seqlen_balanced_partitions = _balanced_partitions
    assert "chunk_tensordict" in BatchData.chunk.__code__.co_names
    tensordict_utils.chunk_tensordict = _chunks
