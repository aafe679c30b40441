"""Rollout groups, and the messages by which workers send them and report progress. No message can hold code.

A message is a list of frames: the run's token, a JSON header, and for a group three buffers of little-endian numbers:
the length of each completion (int32), all token ids (int32) and all log-probabilities (float32).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# The units in which a worker counts its progress, as in "micro-batch 3 of 22".
STAGES = ("completion", "micro-batch", "weight")
_MAX_HEADER_BYTES = 4096
_MAX_COUNT = 2**53
# A log-probability of a certain token may come out above 0 by rounding.
_MAX_LOG_PROB = 1e-3

Frame = bytes | memoryview


class MalformedMessage(ValueError):
    """A message that breaks the format, or a group that differs from the one that was asked for."""


class SampleKey(NamedTuple):
    """The key of a completion among verl's samples: its prompt's uid, which has no underscore, and its number.

    verl writes `uid_number_0` and parses it; the last number counts the turns of a conversation. A prompt's own key is
    its uid.
    """

    uid: str
    number: int

    def __str__(self) -> str:
        return f"{self.uid}_{self.number}_0"

    @staticmethod
    def uid_of(key: str) -> str:
        """Return the uid in the key of a completion or of a prompt."""
        return key.partition("_")[0]


@dataclass(frozen=True)
class Group:
    """The completions of one prompt: token ids, the log-probability of each, and the version of the weights."""

    uid: str
    responses: list[list[int]]
    log_probs: list[np.ndarray]
    version: int


@dataclass(frozen=True)
class WorkerPlace:
    """A worker's progress: `done` of `total` units are finished. `total` is None if the worker does not know it."""

    worker: int
    stage: str
    done: int
    total: int | None

    def __str__(self) -> str:
        return f"{self.stage} {self.done}" + ("" if self.total is None else f" of {self.total}")


@dataclass(frozen=True)
class GroupLimits:
    """Bounds on every group of a run: the model's vocabulary, tokens per completion, completions per group."""

    vocabulary_size: int
    max_response_tokens: int
    max_group_size: int

    @property
    def max_frame_bytes(self) -> int:
        """The size of the largest frame of a valid message."""
        return max(_MAX_HEADER_BYTES, 4 * self.max_response_tokens * self.max_group_size)


def encode_group(group: Group) -> list[Frame]:
    """The frames of `group` behind the token."""
    header = {"kind": "group", "uid": group.uid, "version": group.version}
    lengths = np.array([len(response) for response in group.responses], dtype="<i4")
    tokens = np.concatenate([np.asarray(response, dtype="<i4") for response in group.responses])
    log_probs = np.concatenate([np.asarray(values, dtype="<f4") for values in group.log_probs])
    return [json.dumps(header).encode(), lengths.data, tokens.data, log_probs.data]


def encode_place(place: WorkerPlace) -> list[Frame]:
    """The one frame of `place` behind the token."""
    header = {"kind": "place", "worker": place.worker, "stage": place.stage, "done": place.done, "total": place.total}
    return [json.dumps(header).encode()]


def decode_header(frame: Frame) -> dict[str, Any]:
    """Return the header of a group or of a place. Its fields have the right types, and there are no others.

    Raises:
        MalformedMessage: The frame is not such a header.
    """
    if len(frame) > _MAX_HEADER_BYTES:
        raise MalformedMessage(f"a header has {len(frame)} bytes; at most {_MAX_HEADER_BYTES} are allowed")
    try:
        header = json.loads(bytes(frame))
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"a header is not JSON: {error}") from None
    kinds = {
        "group": {"uid": _is_text, "version": _is_count},
        "place": {
            "worker": _is_count,
            "stage": lambda value: value in STAGES,
            "done": _is_count,
            "total": lambda value: value is None or _is_count(value),
        },
    }
    kind = header.get("kind") if isinstance(header, dict) else None
    fields = kinds.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise MalformedMessage(f"a header is of the kind {_shown(kind)}; known are {', '.join(kinds)}")
    if set(header) != {"kind", *fields}:
        raise MalformedMessage(f"a header of the kind {kind} must have the fields {', '.join(fields)}")
    for name, is_right in fields.items():
        if not is_right(header[name]):
            raise MalformedMessage(f"{name} in a header of the kind {kind} is {_shown(header[name])}")
    return header


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _shown(value: Any) -> str:
    """`value` for a message, without the depths of a nested one."""
    return type(value).__name__ if isinstance(value, dict | list) else repr(value)


def decode_place(header: Mapping[str, Any], buffers: Sequence[Frame]) -> WorkerPlace:
    """The place that a checked header describes.

    Raises:
        MalformedMessage: There are buffers behind the header.
    """
    if buffers:
        raise MalformedMessage(f"a place has {len(buffers)} buffers; it must have none")
    return WorkerPlace(worker=header["worker"], stage=header["stage"], done=header["done"], total=header["total"])


def decode_group(
    header: Mapping[str, Any], buffers: Sequence[Frame], *, num_completions: int, limits: GroupLimits
) -> Group:
    """The group that a checked header and the buffers behind it describe.

    Args:
        header: The header, as `decode_header` returns it.
        buffers: The frames behind the header.
        num_completions: The number of completions that was asked for.
        limits: Bounds on lengths and token ids.

    Raises:
        MalformedMessage: The buffers are not a group of `num_completions` within `limits`.
    """
    named = f"the group {header['uid']!r}"
    if len(buffers) != 3:
        raise MalformedMessage(f"{named} has {len(buffers)} buffers; it must have 3")
    if len(buffers[0]) != 4 * num_completions:
        raise MalformedMessage(f"{named} has {len(buffers[0]) / 4:g} completions; {num_completions} were asked for")
    lengths = np.frombuffer(buffers[0], dtype="<i4")
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1 or longest > limits.max_response_tokens:
        raise MalformedMessage(
            f"{named} has completions of {shortest} to {longest} tokens; 1 to {limits.max_response_tokens} are allowed"
        )
    num_tokens = int(lengths.sum(dtype=np.int64))
    for name, buffer in (("token ids", buffers[1]), ("log-probabilities", buffers[2])):
        if len(buffer) != 4 * num_tokens:
            raise MalformedMessage(f"{named} has {len(buffer)} bytes of {name}; {num_tokens} tokens need 4 each")
    # Copied, because the frames are read-only and torch wants to write.
    tokens = np.frombuffer(buffers[1], dtype="<i4").copy()
    log_probs = np.frombuffer(buffers[2], dtype="<f4").copy()
    if tokens.min() < 0 or tokens.max() >= limits.vocabulary_size:
        raise MalformedMessage(
            f"{named} has token ids from {tokens.min()} to {tokens.max()}; the vocabulary ends before "
            f"{limits.vocabulary_size}"
        )
    if not np.isfinite(log_probs).all() or log_probs.max() > _MAX_LOG_PROB:
        raise MalformedMessage(
            f"{named} has a log-probability that is not finite or lies above 0; the model may have diverged"
        )
    ends = np.cumsum(lengths)[:-1]
    return Group(
        uid=header["uid"],
        responses=[part.tolist() for part in np.split(tokens, ends)],
        log_probs=np.split(log_probs, ends),
        version=header["version"],
    )
