"""Keep the samples of a batch in the trainer's process, behind the functions of verl's TransferQueue.

TransferQueue keeps samples in separate processes, so that trainers, rollouts and workers on many machines can access
them concurrently. For small models, sending every column back and forth takes longer than generating and training.
Here, rollouts write into the trainer's process, and workers receive the fields that they read as arguments.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.protocol import DataProtoFuture
from verl.trainer.ppo.v1 import replay_buffer
from verl.utils import tensordict_utils as tu

from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.rollout.groups import SampleKey
from rgtrain.training.rollout.packed_columns import (
    Column,
    Gatherer,
    PackedBatch,
    PackedColumn,
    as_column,
    column_of_rows,
    expanded,
    part,
    rows_of,
)
from rgtrain.upstream.rank_parts import MINI_BATCHES, RankParts

# The fields that a forward pass reads.
MODEL_INPUTS = ("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids")


class SampleBlock:
    """Columns of some samples: those of a group, or all of a batch.

    Args:
        keys: The keys of the samples.
        columns: The columns by name, with one row per sample.
    """

    def __init__(self, keys: Sequence[str], columns: dict[str, Column]):
        self.keys = list(keys)
        self.columns = columns

    @classmethod
    def of(cls, samples: Mapping[str, Mapping[str, Any]]) -> "SampleBlock":
        """Return the block of samples given by key, all with the same fields."""
        rows = list(samples.values())
        columns = {name: column_of_rows([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        return cls(list(samples), columns)


# The states of a prompt whose completions are still awaited.
_OPEN = ("pending", "running")
# A prompt that never finishes would otherwise go unnoticed.
_LONGEST_WAIT_SECONDS = 1.0
# More than a training step reads. The rest are single groups of dynamic sampling.
_MOST_BATCHES = 32
# A block and a row of it.
_Place = tuple[SampleBlock, int]


class _Batch:
    """Samples that were read together, with the columns that were read."""

    def __init__(self, block: SampleBlock, places: Mapping[str, list[_Place]]):
        self.block = block
        self._places = [places[key] for key in block.keys]
        self._gatherer = Gatherer()
        # The first block of a sample is that of its group. It has the columns that were not written later.
        self._group_pieces = _pieces([places[0] for places in self._places])
        self._written = {name for places in self._places for block, _ in places[1:] for name in block.columns}

    def has(self, name: str) -> bool:
        """Return whether the samples have a field."""
        return name in self.block.columns or any(name in block.columns for block, _ in self._places[0])

    def column(self, name: str) -> Column:
        """Return a column of the samples."""
        if name not in self.block.columns:
            is_written = name in self._written
            pieces = _pieces([_latest(places, name) for places in self._places]) if is_written else self._group_pieces
            joined = [(block.columns[name], start, stop) for block, start, stop in pieces]
            self.block.columns[name] = self._gatherer.join(joined)
        return self.block.columns[name]

    def forget(self, names: Iterable[str]) -> None:
        """Forget columns, because they were written for some of the samples."""
        for name in names:
            self.block.columns.pop(name, None)
            self._written.add(name)


def _latest(places: Sequence[_Place], name: str) -> _Place:
    for place in reversed(places):
        if name in place[0].columns:
            return place
    raise KeyError(name)


def _pieces(places: Sequence[_Place]) -> list[tuple[SampleBlock, int, int]]:
    """Return the runs of consecutive rows of the same block."""
    found: list[tuple[SampleBlock, int, int]] = []
    for block, row in places:
        if found and found[-1][0] is block and found[-1][2] == row:
            found[-1] = block, found[-1][1], row + 1
        else:
            found.append((block, row, row + 1))
    return found


class SampleStore:
    """Fields and tags of samples by partition and key. Thread-safe.

    Fields are kept as columns of whole groups. Columns that were read are kept too, because a step reads the same
    samples several times.
    """

    def __init__(self) -> None:
        self._places: dict[str, dict[str, list[_Place]]] = defaultdict(dict)
        self._tags: dict[str, dict[str, dict[str, Any]]] = {}
        # The samples that were read together, by their keys in order.
        self._batches: dict[str, dict[tuple[str, ...], _Batch]] = defaultdict(dict)
        # The prompts that are neither finished nor failed.
        self._open: dict[str, set[str]] = defaultdict(set)
        self._changed = threading.Condition()

    def put(self, partition_id: str, samples: SampleBlock | None, tags: Mapping[str, Mapping[str, Any]]) -> None:
        """Add fields and tags to samples, in one atomic operation for readers."""
        with self._changed:
            if samples is not None:
                self._add(partition_id, samples)
            partition = self._tags.setdefault(partition_id, {})
            for key, values in tags.items():
                tag = partition.setdefault(key, {})
                tag.update(values)
                if tag.get("is_prompt"):
                    (self._open[partition_id].add if tag["status"] in _OPEN else self._open[partition_id].discard)(key)
            self._changed.notify_all()
        ACTIVITY.moved()

    def _add(self, partition_id: str, block: SampleBlock) -> None:
        places = self._places[partition_id]
        for row, key in enumerate(block.keys):
            places.setdefault(key, []).append((block, row))
        for batch in self._batches_with(partition_id, block.keys):
            batch.forget(block.columns)

    def _batches_with(self, partition_id: str, keys: Sequence[str]) -> list[_Batch]:
        """Return the batches that hold some of `keys`."""
        written = set(keys)
        return [batch for of, batch in self._batches[partition_id].items() if not written.isdisjoint(of)]

    def wait_for_prompts(self, partition_id: str, *, fewer_than: int, timeout_s: float) -> None:
        """Wait until few prompts are left that are neither finished nor failed.

        Args:
            partition_id: The partition of the prompts.
            fewer_than: The wait ends if fewer prompts are left.
            timeout_s: The longest time to wait, in seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._open[partition_id]) < fewer_than, timeout_s)

    def column(self, partition_id: str, keys: Sequence[str], name: str) -> list[Any]:
        """Return the field `name` of each of `keys`."""
        return rows_of(self.columns(partition_id, keys, [name])[name])

    def columns(self, partition_id: str, keys: Sequence[str], names: Iterable[str] | None = None) -> dict[str, Any]:
        """Return columns of samples in their compact forms.

        Args:
            partition_id: The partition of the samples.
            keys: The keys of the samples, at least one.
            names: The names of the fields. Those that do not exist are left out. None means all.

        Returns:
            The columns by name, each a `Column`, with the rows in the order of `keys`.

        Raises:
            KeyError: There is no sample with one of the keys.
        """
        with self._changed:
            batch = self._read_together(partition_id, keys)
            if names is None:
                of_first = [name for block, _ in self._places[partition_id][keys[0]] for name in block.columns]
                names = dict.fromkeys(of_first)
            return {name: batch.column(name) for name in names if batch.has(name)}

    def rewards(self, partition_id: str, keys: Sequence[str]) -> Tensor:
        """Return the total reward of each sample, [samples]."""
        rewards: PackedColumn = self.columns(partition_id, keys, ["rm_scores"])["rm_scores"]
        return rewards.row_sums()

    def _read_together(self, partition_id: str, keys: Sequence[str]) -> _Batch:
        batches = self._batches[partition_id]
        if (batch := batches.get(tuple(keys))) is None:
            batch = batches[tuple(keys)] = _Batch(SampleBlock(keys, {}), self._places[partition_id])
            if len(batches) > _MOST_BATCHES:
                del batches[next(iter(batches))]
        return batch

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
        columns = {} if fields is None else {name: as_column(column) for name, column in fields.items()}
        self.put_columns(partition_id, keys, columns, tags)
        stored = self._tags[partition_id]
        return KVBatchMeta(keys=list(keys), tags=[stored.get(key, {}) for key in keys], partition_id=partition_id)

    def put_columns(
        self,
        partition_id: str,
        keys: Sequence[str],
        columns: Mapping[str, Column],
        tags: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add columns in their compact forms, with one row per key, and the tags of each key."""
        with self._changed:
            block = SampleBlock(keys, dict(columns)) if columns else None
            self.put(partition_id, block, dict(zip(keys, tags, strict=True)) if tags is not None else {})
            if batch := self._batches[partition_id].get(tuple(keys)):
                batch.block.columns.update(columns)

    def kv_batch_get(
        self, keys: Sequence[str], partition_id: str, select_fields: Sequence[str] | None = None
    ) -> TensorDict:
        """Return all columns of `keys`, or the existing columns among `select_fields`."""
        columns = self.columns(partition_id, keys, select_fields)
        return TensorDict({name: expanded(column) for name, column in columns.items()}, batch_size=len(keys))

    def kv_list(self, partition_id: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Return tags in the order in which their prompts were drawn, whichever group was scored first.

        verl trains on the samples in this order, and sums of floats depend on it.

        Args:
            partition_id: The only partition to list, or None for all.

        Returns:
            The tags by partition and key.
        """
        with self._changed:
            return {
                partition: {key: dict(keys[key]) for key in _in_prompt_order(keys)}
                for partition, keys in self._tags.items()
                if partition_id in (None, partition)
            }

    def kv_clear(self, keys: Sequence[str], partition_id: str) -> None:
        """Remove samples."""
        with self._changed:
            for stored in (self._places, self._tags):
                for key in keys:
                    stored.get(partition_id, {}).pop(key, None)
            self._open[partition_id].difference_update(keys)
            for batch in self._batches_with(partition_id, keys):
                del self._batches[partition_id][tuple(batch.block.keys)]


def _in_prompt_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of prompts and samples, with the keys of each prompt together."""
    position: dict[str, int] = {}
    for key in keys:
        position.setdefault(SampleKey.uid_of(key), len(position))
    return sorted(keys, key=lambda key: position[SampleKey.uid_of(key)])


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
        groups: dict[str, list[float]] = defaultdict(list)
        if not keys:
            return groups.items()
        if is_reward:
            values = STORE.rewards(partition_id, keys).tolist()
        else:
            details = STORE.column(partition_id, keys, "extra_fields")
            values = [float(each["reward_extra_info"][self.filter_groups_metric]) for each in details]
        for key, value in zip(keys, values, strict=True):
            groups[SampleKey.uid_of(key)].append(value)
        return groups.items()

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """Wait until no prompt is in flight. Only groups without a signal are replaced earlier."""
        replaces = partition_id != "val" and self.filter_groups_metric is not None and not self.in_waves
        num_in_flight = len(self.pending_keys[partition_id]) + len(self.running_keys[partition_id])
        fewer_than = num_in_flight if replaces else 1
        STORE.wait_for_prompts(partition_id, fewer_than=fewer_than, timeout_s=_LONGEST_WAIT_SECONDS)
        if replaces:
            # Groups often finish at the same time, and listing all samples takes longer than this. After the last one,
            # there is nothing to wait for.
            STORE.wait_for_prompts(partition_id, fewer_than=1, timeout_s=self.poll_interval)
        return last_debug_time

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
        columns = self._store.columns(batch.partition_id, batch.keys, batch.fields or MODEL_INPUTS)
        parts = [_part(PackedBatch(columns, batch.extra_info), share) for share in shares]
        output = getattr(self._workers, method)(RankParts(parts))
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


def _part(batch: PackedBatch, share: RankRows) -> PackedBatch:
    """Return a rank's samples, with its mini-batches if it updates a model."""
    own = part(batch, share.samples)
    return PackedBatch(own.columns, own.constants | ({MINI_BATCHES: share.mini_batches} if share.mini_batches else {}))


class _CompletedFuture:
    """An already completed future."""

    futures: ClassVar[list[Any]] = []

    def __init__(self, output: Any):
        self._output = output

    def get(self) -> Any:
        return self._output
