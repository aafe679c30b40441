"""Read completions and their rewards from verl's TransferQueue, and keep the results of groups that verl drops."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import transfer_queue
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import replay_buffer

from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.metrics import Rollout

_FIELDS = ("uid", "data_source", "rm_scores", "extra_fields", "extra_info", "responses")
_TRAINING = "train"


def read_columns(partition_id: str, keys: Sequence[str], names: Sequence[str]) -> list[list[Any]]:
    """Return fields of samples, one list per field.

    Args:
        partition_id: The partition of the samples.
        keys: The keys of the samples.
        names: The names of the fields.

    Returns:
        The values of each field in the order of `keys`.
    """
    if not keys:
        return [[] for _ in names]
    data = transfer_queue.kv_batch_get(keys=list(keys), partition_id=partition_id, select_fields=list(names))
    # Tensors of different lengths are nested, and other objects come as a list.
    return [list(data[name].unbind()) if isinstance(data[name], Tensor) else list(data[name]) for name in names]


def rollouts(batch: KVBatchMeta) -> list[Rollout]:
    """Return the completions of `batch`, without the copies with which verl fills up a mini-batch.

    verl's convention applies to a reward without `acc`: the score counts as the accuracy.

    Args:
        batch: The metadata of the samples.

    Returns:
        One rollout per completion. A conversation of several samples counts once, with its last sample. The details
        are the numbers that all completions have.
    """
    return _rollouts(batch.partition_id, completion_keys(batch))


def completion_keys(batch: KVBatchMeta) -> list[str]:
    """Return the keys of the completions: the last sample of each conversation, without copies."""
    return _last_of_sessions(
        key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)
    )


def _rollouts(partition_id: str, keys: Sequence[str]) -> list[Rollout]:
    columns = read_columns(partition_id, keys, _FIELDS)
    rewards = [float(scores.sum()) for scores in columns[2]]
    details = [
        {"acc": reward} | _numbers(extra_fields.get("reward_extra_info", {}))
        for reward, extra_fields in zip(rewards, columns[3], strict=True)
    ]
    shared = set.intersection(*map(set, details)) if details else set()
    return [
        Rollout(
            dataset=dataset,
            group=uid,
            reward=reward,
            details={name: value for name, value in of_one.items() if name in shared},
            num_held_out=extra_info["num_held_out"],
            num_too_long=extra_info["num_too_long"],
            level=extra_info["level"],
            response_hash=hash(response.numpy().tobytes()),
        )
        for uid, dataset, reward, of_one, extra_info, response in zip(
            columns[0], columns[1], rewards, details, *columns[4:], strict=True
        )
    ]


def _numbers(details: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in details.items() if isinstance(value, Real)}


def _last_of_sessions(keys: Iterable[str]) -> list[str]:
    """Return the key of the last sample of each session. verl writes keys as `UID_SESSION_NUMBER`."""
    last: dict[str, str] = {}
    for key in keys:
        session, _, number = key.rpartition("_")
        if session not in last or int(number) > int(last[session].rpartition("_")[2]):
            last[session] = key
    return list(last.values())


def group_results(completions: Iterable[Rollout]) -> list[GroupResult]:
    """Return the result of each group for the curriculum, in the order of the completions."""
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for completion in completions:
        groups[completion.group].append(completion)
    return [
        GroupResult(
            dataset=members[0].dataset,
            level=members[0].level,
            scores=[member.details["acc"] for member in members],
            rewards=[member.reward for member in members],
        )
        for members in groups.values()
    ]


class ObservedReplayBuffer(replay_buffer.ReplayBuffer):
    """A sampler of finished groups that keeps the results of the groups it drops, and reports progress.

    Dynamic sampling drops groups whose completions are all equal. If a curriculum did not see them, it would never
    notice that a level is solved.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._dropped: list[GroupResult] = []
        self._num_done = 0
        self._failed: set[str] = set()

    def take_dropped(self) -> list[GroupResult]:
        """Return the results of the training groups that were dropped since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        if partition_id == _TRAINING:
            keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in uids]
            self._dropped += group_results(_rollouts(partition_id, _last_of_sessions(keys)))
        super()._clear_groups(partition_id, uids)

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        failed = set().union(*self.failure_keys.values())
        num_done = sum(map(len, self.finished_keys.values())) + sum(map(len, self.partitions.values())) + len(failed)
        if num_done != self._num_done:
            self._num_done = num_done
            ACTIVITY.moved()
        if new := failed - self._failed:
            self._failed |= new
            announce(f"generating or scoring failed for {len(new)} prompt(s); the log has the errors")


def observed(original: type) -> type:
    """Return a subclass of one of verl's samplers whose first base class is ObservedReplayBuffer."""
    return type(f"Observed{original.__name__}", (ObservedReplayBuffer, original), {})
