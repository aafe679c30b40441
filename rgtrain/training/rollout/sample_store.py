"""Keep the samples of a batch in the trainer's process, behind the functions of verl's TransferQueue.

TransferQueue keeps samples in separate processes, so that trainers, rollouts and workers on many machines can access
them concurrently. For small models, sending every column back and forth takes longer than generating and training.
Here, rollouts write into the trainer's process, and workers receive the fields that they read as arguments.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.protocol import DataProtoFuture
from verl.trainer.ppo.v1 import replay_buffer
from verl.utils import tensordict_utils as tu

from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.rollout.groups import SampleKey
from rgtrain.upstream.rank_parts import MINI_BATCHES, RankParts

# The fields that a forward pass reads.
MODEL_INPUTS = ("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids")


class SampleStore:
    """Fields and tags of samples by partition and key. Thread-safe."""

    def __init__(self) -> None:
        self._fields: dict[str, dict[str, dict[str, Any]]] = {}
        self._tags: dict[str, dict[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def put(self, partition_id: str, samples: dict[str, dict[str, Any]], tags: dict[str, dict[str, Any]]) -> None:
        """Add fields and tags to samples, in one atomic operation for readers."""
        with self._lock:
            for stored, added in ((self._fields, samples), (self._tags, tags)):
                partition = stored.setdefault(partition_id, {})
                for key, values in added.items():
                    partition.setdefault(key, {}).update(values)
        ACTIVITY.moved()

    def column(self, partition_id: str, keys: Sequence[str], name: str) -> list[Any]:
        """Return the field `name` of each of `keys`."""
        partition = self._fields[partition_id]
        return [partition[key][name] for key in keys]

    # The functions of TransferQueue that verl's synchronous trainer calls, with the arguments that it uses.

    def init(self, conf: Any = None) -> None:
        """Do nothing, because there are no processes to start."""

    def close(self) -> None:
        """Do nothing, because there are no processes to end."""

    def kv_batch_put(
        self,
        keys: Sequence[str],
        partition_id: str,
        fields: TensorDict | None = None,
        tags: Sequence[dict[str, Any]] | None = None,
    ) -> KVBatchMeta:
        """Add fields and tags to samples.

        Args:
            keys: The keys of the samples.
            partition_id: The partition of the samples.
            fields: Columns with one row per key.
            tags: The tags of each key.

        Returns:
            The metadata that stands for these samples, with all their tags.
        """
        samples: dict[str, dict[str, Any]] = {}
        if fields is not None:
            samples = {key: {} for key in keys}
            for name, column in fields.items():
                for key, value in zip(keys, _rows(column), strict=True):
                    samples[key][name] = value
        self.put(partition_id, samples, dict(zip(keys, tags, strict=True)) if tags is not None else {})
        stored = self._tags[partition_id]
        return KVBatchMeta(keys=list(keys), tags=[stored.get(key, {}) for key in keys], partition_id=partition_id)

    def kv_batch_get(
        self, keys: Sequence[str], partition_id: str, select_fields: Sequence[str] | None = None
    ) -> TensorDict:
        """Return all columns of `keys`, or the existing columns among `select_fields`."""
        names = self._fields[partition_id][keys[0]]
        selected = names if select_fields is None else [name for name in select_fields if name in names]
        columns = {name: _as_column(self.column(partition_id, keys, name)) for name in selected}
        return TensorDict(columns, batch_size=len(keys))

    def kv_list(self, partition_id: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Return tags in the order in which their prompts were drawn, whichever group was scored first.

        verl trains on the samples in this order, and sums of floats depend on it.

        Args:
            partition_id: The only partition to list, or None for all.

        Returns:
            The tags by partition and key.
        """
        with self._lock:
            return {
                partition: {key: dict(keys[key]) for key in _in_prompt_order(keys)}
                for partition, keys in self._tags.items()
                if partition_id in (None, partition)
            }

    def kv_clear(self, keys: Sequence[str], partition_id: str) -> None:
        """Remove samples."""
        with self._lock:
            for stored in (self._fields, self._tags):
                for key in keys:
                    stored.get(partition_id, {}).pop(key, None)


def _in_prompt_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of prompts and samples, with the keys of each prompt together."""
    position: dict[str, int] = {}
    for key in keys:
        position.setdefault(SampleKey.uid_of(key), len(position))
    return sorted(keys, key=lambda key: position[SampleKey.uid_of(key)])


def _rows(column: Any) -> Sequence[Any]:
    return column.unbind() if isinstance(column, Tensor) else column.tolist()


def _as_column(values: list[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return NonTensorStack(*values)
    if values[0].ndim == 0:
        return torch.stack(values)
    # This stores the longest length. A tensor made from offsets would be padded to the total length of all rows.
    return torch.nested.as_nested_tensor(values, layout=torch.jagged)


# The methods of this store replace TransferQueue's functions in the trainer's process.
STORE = SampleStore()


class OrderedReplayBuffer(replay_buffer.ReplayBuffer):
    """verl's sampler of finished groups, changed to take them in the order in which their prompts were drawn.

    If more groups are finished than needed, verl's sampler chooses them in the order of random names.

    Attributes:
        in_waves: Whether to draw prompts only when none is in flight. The number of drawn prompts is then reproducible.
            By default, a group without a signal is replaced as soon as it is noticed, which depends on timing.
    """

    in_waves: bool = False

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        if not self.in_waves:
            return
        for partition_id in self.partitions:
            if pending := self.pending_keys[partition_id]:
                pending |= self.finished_keys.pop(partition_id, set()) | self.failure_keys.pop(partition_id, set())

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter[float]]:
        """Return the finished groups whose completions are all equal in the metric, and a count of each value.

        verl tests whether the standard deviation is 0, which rounding errors can prevent. For three values of 0.1, it
        is 1.4e-17.

        Args:
            partition_id: The partition of the groups.

        Returns:
            The uids of the groups, and the number of groups by value.
        """
        if partition_id != "val" and self.filter_groups_metric is not None:
            judged = self._dapo_classification_cache[partition_id]
            for uid, values in self._metric_of_groups(partition_id, self.finished_keys[partition_id] - judged.keys()):
                judged[uid] = values[0] if len(values) > 1 and len(set(values)) == 1 else None
        return super()._dapo_filtered_keys(partition_id)

    def _metric_of_groups(self, partition_id: str, uids: set[str]) -> Iterable[tuple[str, list[float]]]:
        is_reward = self.filter_groups_metric == replay_buffer.FILTER_GROUPS_REWARD_METRIC
        keys = [key for key in self.partitions[partition_id] if SampleKey.uid_of(key) in uids]
        found = STORE.column(partition_id, keys, "rm_scores" if is_reward else "extra_fields") if keys else []
        groups: dict[str, list[float]] = defaultdict(list)
        for key, value in zip(keys, found, strict=True):
            number = value.sum() if is_reward else value["reward_extra_info"][self.filter_groups_metric]
            groups[SampleKey.uid_of(key)].append(float(number))
        return groups.items()

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> tuple[list[str], dict[str, dict[str, Any]], dict[str, int]]:
        in_order = [uid for uid in self.prompt_global_steps[partition_id] if uid in sampleable_keys]
        return super()._select_prompt_uids(partition_id, in_order, batch_size)


class RankRows(Protocol):
    """One rank's part of a batch."""

    @property
    def samples(self) -> Sequence[int]:
        """The positions of the rank's samples in the batch."""

    @property
    def mini_batches(self) -> Sequence[Any]:
        """The rank's part of each mini-batch, in the order of the updates; empty for a forward pass."""


class BatchDivision(Protocol):
    """Divides the samples of a batch over ranks."""

    def shares(self, method: str, batch: KVBatchMeta) -> Sequence[RankRows]:
        """Return the share of each rank for a call of a worker's method."""


class StoredWorkers:
    """A worker group whose calls take the samples of a KVBatchMeta and store the returned columns.

    Args:
        workers: verl's worker group.
        store: The store of the samples.
        division: Divides the samples of a call over ranks.
    """

    def __init__(self, workers: Any, store: SampleStore, division: BatchDivision):
        self._workers = workers
        self._store = store
        self._division = division

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Compute the actor's log-probabilities."""
        return self._call("compute_log_prob", batch)

    def compute_ref_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Compute the reference policy's log-probabilities."""
        return self._call("compute_ref_log_prob", batch)

    def update_actor(self, batch: KVBatchMeta) -> TensorDict:
        """Update the actor, and return its metrics."""
        return self._call("update_actor", batch)

    def infer_batch(self, batch: KVBatchMeta) -> "_CompletedFuture":
        """Compute the critic's values."""
        return _CompletedFuture(self._call("infer_batch", batch))

    def train_mini_batch(self, batch: KVBatchMeta) -> "_CompletedFuture":
        """Update the critic."""
        return _CompletedFuture(self._call("train_mini_batch", batch))

    def _call(self, method: str, batch: KVBatchMeta) -> Any:
        shares = self._division.shares(method, batch)
        output = getattr(self._workers, method)(RankParts([self._part(batch, share) for share in shares]))
        if isinstance(output, DataProtoFuture):
            output = output.get()
        if not output.batch_size:
            return output
        tensors = output.select(*(name for name, value in output.items() if isinstance(value, Tensor)))
        # Rows come back in the order of ranks. Two ranks can have computed the same sample.
        rows: dict[int, int] = {}
        for row, sample in enumerate(sample for share in shares for sample in share.samples):
            rows.setdefault(sample, row)
        if len(rows) < len(tensors):
            tensors = tu.index_select_tensor_dict(tensors, list(rows.values()))
        self._store.kv_batch_put([batch.keys[sample] for sample in rows], batch.partition_id, fields=tensors)
        return batch

    def _part(self, batch: KVBatchMeta, share: RankRows) -> TensorDict:
        """Return a rank's samples, with the settings of the call."""
        keys = [batch.keys[sample] for sample in share.samples]
        data = self._store.kv_batch_get(keys, batch.partition_id, batch.fields or MODEL_INPUTS)
        for name, value in batch.extra_info.items():
            tu.assign_non_tensor_data(data, name, value)
        if share.mini_batches:
            tu.assign_non_tensor_data(data, MINI_BATCHES, share.mini_batches)
        return data


class _CompletedFuture:
    """An already completed future."""

    futures: ClassVar[list[Any]] = []

    def __init__(self, output: Any):
        self._output = output

    def get(self) -> Any:
        return self._output
