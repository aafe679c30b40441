"""Encode and decode rollout groups and progress reports. The format cannot carry code.

A message is a list of frames. The first two are the run's token and a JSON header. A group, or a part of one, has three
more frames of little-endian numbers: the length of each completion (int32), all token ids (int32) and all
log-probabilities (float32).
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# The units in which a worker counts its progress, for example "micro-batch 3 of 22".
STAGES = ("completion", "micro-batch", "weight")
_MAX_HEADER_BYTES = 4096
_MAX_COUNT = 2**53
# Because of rounding, the log-probability of a certain token may be slightly above 0.
_MAX_LOG_PROB = 1e-3

Frame = bytes | memoryview


class MalformedMessage(ValueError):
    """A message that breaks the format, or a group that differs from the requested one."""


class SampleKey(NamedTuple):
    """The key of a completion among verl's samples.

    verl writes and parses it as `UID_NUMBER_0`. The last number counts the turns of a conversation. The key of a prompt
    is its uid alone.

    Attributes:
        uid: The prompt's uid, which has no underscore.
        number: The number of the completion within its group.
    """

    uid: str
    number: int

    def __str__(self) -> str:
        return f"{self.uid}_{self.number}_0"

    @staticmethod
    def uid_of(key: str) -> str:
        """Return the uid in the key of a completion or a prompt."""
        return key.partition("_")[0]


class PartKey(NamedTuple):
    """The name of a group, or of a part of it that one engine generates.

    Attributes:
        uid: The prompt's uid.
        first: The number of the part's first completion within the group.
    """

    uid: str
    first: int


class PartRequest(NamedTuple):
    """A request for some completions of a prompt.

    Attributes:
        key: The name of the part.
        num_completions: The number of completions.
        prompt_ids: The token ids of the prompt.
    """

    key: PartKey
    num_completions: int
    prompt_ids: list[int]


@dataclass(frozen=True)
class Group:
    """The completions of one prompt, or a part of them that one engine generated.

    Attributes:
        uid: The prompt's uid.
        responses: The token ids of each completion.
        log_probs: The log-probabilities of the tokens of each completion.
        version: The training step of the weights that generated them.
        first: The number of the first completion. 0 for a whole group.
    """

    uid: str
    responses: list[list[int]]
    log_probs: list[np.ndarray]
    version: int
    first: int = 0

    @property
    def key(self) -> PartKey:
        """The name of the group or part."""
        return PartKey(self.uid, self.first)

    @staticmethod
    def joined(parts: "Sequence[Group]") -> "Group":
        """Return the whole group.

        Args:
            parts: All parts of one group, in any order.

        Returns:
            The group with its completions in the order of their numbers.

        Raises:
            MalformedMessage: The parts overlap, leave a gap or come from different weights.
        """
        parts = sorted(parts, key=lambda part: part.first)
        starts = itertools.accumulate((len(part.responses) for part in parts), initial=0)
        if [part.first for part in parts] != list(starts)[:-1]:
            raise MalformedMessage(f"the parts of the group {parts[0].uid!r} overlap or leave a gap")
        if len(versions := {part.version for part in parts}) > 1:
            raise MalformedMessage(f"the parts of the group {parts[0].uid!r} have the versions {sorted(versions)}")
        return Group(
            parts[0].uid,
            responses=[response for part in parts for response in part.responses],
            log_probs=[log_probs for part in parts for log_probs in part.log_probs],
            version=parts[0].version,
        )


@dataclass(frozen=True)
class WorkerPlace:
    """The progress of a worker.

    Attributes:
        worker: The number of the worker.
        stage: The kind of unit, one of STAGES.
        done: The number of finished units.
        total: The number of all units, or None if the worker does not know it.
    """

    worker: int
    stage: str
    done: int
    total: int | None

    def __str__(self) -> str:
        return f"{self.stage} {self.done}" + ("" if self.total is None else f" of {self.total}")

    @property
    def share(self) -> float | None:
        """The share of the units that is finished, from 0 to 1, or None if the number of all units is unknown."""
        return min(1.0, self.done / self.total) if self.total else None


@dataclass(frozen=True)
class GroupLimits:
    """Bounds on every group of a run.

    Attributes:
        vocabulary_size: Token ids are below it.
        max_response_tokens: The maximum number of tokens per completion.
        max_group_size: The maximum number of completions per group.
    """

    vocabulary_size: int
    max_response_tokens: int
    max_group_size: int

    @property
    def max_frame_bytes(self) -> int:
        """The size in bytes of the largest frame of a valid message."""
        return max(_MAX_HEADER_BYTES, 4 * self.max_response_tokens * self.max_group_size)


def encode_group(group: Group) -> list[Frame]:
    """Return the frames of `group` that follow the token."""
    header = {"kind": "group", "uid": group.uid, "first": group.first, "version": group.version}
    lengths = np.array([len(response) for response in group.responses], dtype="<i4")
    tokens = np.concatenate([np.asarray(response, dtype="<i4") for response in group.responses])
    log_probs = np.concatenate([np.asarray(values, dtype="<f4") for values in group.log_probs])
    return [json.dumps(header).encode(), lengths.data, tokens.data, log_probs.data]


def encode_finished_completion(key: PartKey) -> list[Frame]:
    """Return the only frame, after the token, of the report that one of a part's completions is finished."""
    return [json.dumps({"kind": "completion", **key._asdict()}).encode()]


def encode_place(place: WorkerPlace) -> list[Frame]:
    """Return the only frame of `place` that follows the token."""
    header = {"kind": "place", "worker": place.worker, "stage": place.stage, "done": place.done, "total": place.total}
    return [json.dumps(header).encode()]


def decode_header(frame: Frame) -> dict[str, Any]:
    """Return the header of a message, after checking the names and types of its fields.

    Args:
        frame: The frame after the token.

    Returns:
        The header.

    Raises:
        MalformedMessage: The frame is not a valid header.
    """
    if len(frame) > _MAX_HEADER_BYTES:
        raise MalformedMessage(f"a header has {len(frame)} bytes; at most {_MAX_HEADER_BYTES} are allowed")
    try:
        header = json.loads(bytes(frame))
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"a header is not JSON: {error}") from None
    kinds = {
        "group": {"uid": _is_text, "first": _is_count, "version": _is_count},
        "completion": {"uid": _is_text, "first": _is_count},
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
        raise MalformedMessage(f"a header is of the kind {_printable(kind)}; known kinds are {', '.join(kinds)}")
    if set(header) != {"kind", *fields}:
        raise MalformedMessage(f"a header of the kind {kind} must have the fields {', '.join(fields)}")
    for name, is_right in fields.items():
        if not is_right(header[name]):
            raise MalformedMessage(f"{name} in a header of the kind {kind} is {_printable(header[name])}")
    return header


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _printable(value: Any) -> str:
    """Return `value` as text for a message, without the content of nested values."""
    return type(value).__name__ if isinstance(value, dict | list) else repr(value)


def decode_place(header: Mapping[str, Any], buffers: Sequence[Frame]) -> WorkerPlace:
    """Return the place that a checked header describes.

    Args:
        header: The header, as `decode_header` returns it.
        buffers: The frames after the header.

    Returns:
        The progress of the worker.

    Raises:
        MalformedMessage: There are frames after the header.
    """
    if buffers:
        raise MalformedMessage(f"a place has {len(buffers)} buffers; it must have none")
    return WorkerPlace(worker=header["worker"], stage=header["stage"], done=header["done"], total=header["total"])


def decode_finished_completion(header: Mapping[str, Any], buffers: Sequence[Frame]) -> PartKey:
    """Return the part of which a completion is finished, from a checked header.

    Args:
        header: The header, as `decode_header` returns it.
        buffers: The frames after the header.

    Returns:
        The name of the part.

    Raises:
        MalformedMessage: There are frames after the header.
    """
    if buffers:
        raise MalformedMessage(f"a finished completion has {len(buffers)} buffers; it must have none")
    return PartKey(header["uid"], header["first"])


def decode_group(
    header: Mapping[str, Any], buffers: Sequence[Frame], *, num_completions: int, limits: GroupLimits
) -> Group:
    """Return the group that a checked header and the buffers after it describe.

    Args:
        header: The header, as `decode_header` returns it.
        buffers: The frames after the header.
        num_completions: The requested number of completions.
        limits: Bounds on lengths and token ids.

    Returns:
        The group, whose numbers are all within the limits.

    Raises:
        MalformedMessage: The buffers are not a group of `num_completions` completions within `limits`.
    """
    named = f"the group {header['uid']!r}"
    if len(buffers) != 3:
        raise MalformedMessage(f"{named} has {len(buffers)} buffers; it must have 3")
    if len(buffers[0]) != 4 * num_completions:
        raise MalformedMessage(f"{named} has {len(buffers[0]) / 4:g} completions; {num_completions} were requested")
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
    # Copied, because torch needs writable arrays and the frames are read-only.
    tokens = np.frombuffer(buffers[1], dtype="<i4").copy()
    log_probs = np.frombuffer(buffers[2], dtype="<f4").copy()
    if tokens.min() < 0 or tokens.max() >= limits.vocabulary_size:
        raise MalformedMessage(
            f"{named} has token ids from {tokens.min()} to {tokens.max()}; only ids from 0 to "
            f"{limits.vocabulary_size - 1} are in the vocabulary"
        )
    if not np.isfinite(log_probs).all() or log_probs.max() > _MAX_LOG_PROB:
        raise MalformedMessage(
            f"{named} has a log-probability that is not finite or is above 0; the model may have diverged"
        )
    ends = np.cumsum(lengths)[:-1]
    return Group(
        uid=header["uid"],
        responses=[part.tolist() for part in np.split(tokens, ends)],
        log_probs=np.split(log_probs, ends),
        version=header["version"],
        first=header["first"],
    )
