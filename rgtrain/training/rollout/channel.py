"""Send rollout groups and progress reports from the workers to the trainer.

The connection lasts as long as the run. On one machine, it is a Unix socket in a folder that no other user can enter.
Between machines, it is TCP with CurveZMQ, which encrypts and accepts only peers that know the trainer's public key.
Every message also carries the run's random token. Workers get address, key and token as an argument of a Ray call.
"""

import asyncio
import hmac
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from rgtrain.errors import ConfigError
from rgtrain.training.rollout.groups import (
    Frame,
    Group,
    GroupLimits,
    MalformedMessage,
    PartKey,
    WorkerPlace,
    decode_finished_completion,
    decode_group,
    decode_header,
    decode_place,
    encode_finished_completion,
    encode_group,
    encode_place,
)

# A finished group or part, the name of a part of which one more completion is finished, or an error, for example of a
# malformed message.
Arrival = Group | PartKey | BaseException

_TOKEN_BYTES = 32
_REPORT_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Endpoint:
    """The address and the secrets that a worker needs to reach its trainer."""

    address: str
    token: bytes = field(repr=False)
    # The trainer's public key for CurveZMQ, or None on a Unix socket.
    server_key: bytes | None = field(default=None, repr=False)


@dataclass
class _AwaitedPart:
    """The requested and the unfinished number of completions of a part, and the function that takes its messages."""

    num_completions: int
    num_unfinished: int
    deliver: Callable[[Arrival], None]


class WorkerChannel:
    """The trainer's end of the connection. A thread receives messages, and checks each one before it is used."""

    def __init__(
        self,
        limits: GroupLimits,
        *,
        folder: Path | None = None,
        host: str | None = None,
        moved: Callable[[WorkerPlace], None],
        warn: Callable[[str], None],
    ):
        """Open the socket.

        Args:
            limits: Bounds on every group.
            folder: A private folder for a Unix socket, if all workers are on this machine.
            host: The address at which other machines reach this one, if `folder` is None.
            moved: Called from the receiving thread when a worker reports progress.
            warn: Called from the receiving thread with a line about messages that were dropped.

        Raises:
            ConfigError: The folder is open to other users, or the installed ZeroMQ cannot encrypt.
        """
        self._limits = limits
        self._moved = moved
        self._warn = warn
        self._lock = threading.Lock()
        self._awaited: dict[PartKey, _AwaitedPart] = {}
        self._num_dropped: dict[str, int] = {}
        self._context = zmq.Context()
        socket = self._context.socket(zmq.PULL)
        # A peer that sends a larger frame is disconnected before it can fill the memory.
        socket.maxmsgsize = limits.max_frame_bytes
        token = secrets.token_bytes(_TOKEN_BYTES)
        if folder is not None:
            self.endpoint = Endpoint(_bind_locally(socket, folder), token)
        else:
            self.endpoint = _bind_encrypted(socket, str(host), token)
        threading.Thread(target=self._receive, args=(socket,), daemon=True, name="worker-channel").start()

    def close(self) -> None:
        """Close the socket and end the thread."""
        # This raises an exception in the thread's wait. The call returns once the thread has closed the socket.
        self._context.term()

    @property
    def num_dropped(self) -> int:
        """The number of messages dropped so far, for example because they had no token or were not awaited."""
        return sum(self._num_dropped.values())

    @contextmanager
    def awaiting(self) -> Iterator["Arrivals"]:
        """Accept the groups and parts that the block expects, until its end. Needs a running event loop.

        Yields:
            The arrivals. Their method `expect` announces groups and parts.
        """
        arrivals = Arrivals(self)
        try:
            yield arrivals
        finally:
            with self._lock:
                self._awaited = {
                    key: awaited for key, awaited in self._awaited.items() if awaited.deliver != arrivals.deliver
                }

    def expect(self, key: PartKey, num_completions: int, deliver: Callable[[Arrival], None]) -> None:
        """Accept one group or part, and the reports of its completions.

        Args:
            key: The name of the part.
            num_completions: The number of its completions.
            deliver: Called from the receiving thread with each message.

        Raises:
            ValueError: The part is already awaited.
        """
        with self._lock:
            if key in self._awaited:
                raise ValueError(f"already awaited: {key}")
            self._awaited[key] = _AwaitedPart(num_completions, num_completions, deliver)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        with socket:
            while True:
                try:
                    frames = socket.recv_multipart(copy=False)
                except zmq.ContextTerminated:
                    return
                self._take([frame.buffer for frame in frames])

    def _take(self, frames: Sequence[Frame]) -> None:
        token, *rest = frames
        if not hmac.compare_digest(bytes(token), self.endpoint.token):
            self._drop("without this run's token")
            return
        try:
            header = decode_header(rest[0] if rest else b"")
            if header["kind"] == "place":
                self._moved(decode_place(header, rest[1:]))
                return
            key = PartKey(header["uid"], header["first"])
            if header["kind"] == "completion":
                self._take_completion(decode_finished_completion(header, rest[1:]))
                return
        except MalformedMessage as error:
            # A worker of this run sent it, perhaps in place of a group, so the batch may never be complete.
            with self._lock:
                deliveries = {awaited.deliver for awaited in self._awaited.values()}
            for deliver in deliveries:
                deliver(error)
            if not deliveries:
                self._drop(f"that is malformed ({error})")
            return
        with self._lock:
            part = self._awaited.pop(key, None)
        if part is None:
            self._drop("with a group that was not awaited or had already arrived")
            return
        try:
            part.deliver(decode_group(header, rest[1:], num_completions=part.num_completions, limits=self._limits))
        except MalformedMessage as error:
            part.deliver(error)

    def _take_completion(self, key: PartKey) -> None:
        with self._lock:
            part = self._awaited.get(key)
            if part is not None:
                part.num_unfinished -= 1
        if part is None:
            self._drop("with a completion of a group that was not awaited or had already arrived")
        # The last completion is not reported, because its part follows.
        elif part.num_unfinished < 1:
            raise MalformedMessage(f"the group {key.uid!r} reports more completions than the requested ones")
        else:
            part.deliver(key)

    def _drop(self, reason: str) -> None:
        self._num_dropped[reason] = self._num_dropped.get(reason, 0) + 1
        if self._num_dropped[reason] == 1:
            self._warn(f"warning: dropped a message {reason}; later ones are dropped silently")


class Arrivals:
    """The messages that a block of `WorkerChannel.awaiting` expects, in the order of arrival.

    Args:
        channel: The channel of the block.
    """

    def __init__(self, channel: WorkerChannel):
        self._channel = channel
        self._queue: asyncio.Queue[Arrival] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def expect(self, key: PartKey, num_completions: int) -> None:
        """Accept a group or a part of it once, and the reports of its completions.

        Args:
            key: The name of the part.
            num_completions: The number of its completions.
        """
        self._channel.expect(key, num_completions, self.deliver)

    async def get(self) -> Arrival:
        """Wait for the next message. A malformed message arrives as its error."""
        return await self._queue.get()

    def deliver(self, arrival: Arrival) -> None:
        """Add a message, from any thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, arrival)


def _bind_locally(socket: zmq.Socket[bytes], folder: Path) -> str:
    """Bind to a Unix socket with a random name in `folder`, and return its address."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{folder}, the folder of the workers' socket, is open to other users; give it mode 0700")
    address = f"ipc://{folder / secrets.token_hex(4)}"
    socket.bind(address)
    return address


def _bind_encrypted(socket: zmq.Socket[bytes], host: str, token: bytes) -> Endpoint:
    """Bind to a random TCP port of `host` with CurveZMQ."""
    if not zmq.has("curve"):
        raise ConfigError(
            "the installed ZeroMQ cannot encrypt, which workers on several machines need; run "
            "`pip install --force-reinstall --only-binary :all: pyzmq`"
        )
    public_key, secret_key = zmq.curve_keypair()
    socket.curve_server, socket.curve_secretkey, socket.curve_publickey = True, secret_key, public_key
    port = socket.bind_to_random_port(f"tcp://{host}")
    return Endpoint(f"tcp://{host}:{port}", token, public_key)


@dataclass(frozen=True)
class _Connection:
    """A socket connected to the trainer at `endpoint`, and this worker's number."""

    socket: zmq.Socket[bytes]
    endpoint: Endpoint
    worker: int


class TrainerLink:
    """A worker's end of the connection, for one thread at a time. Before `connect`, progress reports are dropped."""

    def __init__(self) -> None:
        self._connection: _Connection | None = None
        self._next_report = 0.0

    def connect(self, endpoint: Endpoint, *, worker: int) -> None:
        """Connect to the trainer as worker number `worker`. A no-op if the link is already connected to it."""
        if self._connection is not None and self._connection.endpoint == endpoint:
            return
        self.close()
        # The process-wide context. If a context and its socket are collected together as garbage, ZeroMQ may wait
        # forever for the socket to be closed.
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        # At exit, do not wait for unsent messages. The trainer no longer needs them.
        socket.linger = 0
        if endpoint.server_key is not None:
            socket.curve_serverkey = endpoint.server_key
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(endpoint.address)
        self._connection = _Connection(socket, endpoint, worker)

    def close(self) -> None:
        """Disconnect. Unsent messages are lost."""
        if self._connection is not None:
            self._connection.socket.close()
        self._connection = None

    def send(self, group: Group) -> None:
        """Send a group. This blocks while the send queue is full.

        Args:
            group: The group to send.

        Raises:
            RuntimeError: The link is not connected.
        """
        if self._connection is None:
            raise RuntimeError("this worker is not connected to its trainer; call connect before send")
        self._connection.socket.send_multipart([self._connection.endpoint.token, *encode_group(group)], copy=False)

    def report_completion(self, key: PartKey) -> None:
        """Report that one of a part's completions is finished, but not the last one, which the part itself reports.

        Args:
            key: The name of the part.

        Raises:
            RuntimeError: The link is not connected.
        """
        if self._connection is None:
            raise RuntimeError("this worker is not connected to its trainer; call connect before report_completion")
        self._connection.socket.send_multipart([self._connection.endpoint.token, *encode_finished_completion(key)])

    def moved(self, stage: str, done: int, total: int | None = None) -> None:
        """Report progress. Call it for every unit, because it sends at most one message per second and never waits.

        Args:
            stage: The kind of unit, one of STAGES.
            done: The number of finished units.
            total: The number of all units, if it is known.
        """
        now = time.monotonic()
        if self._connection is None or now < self._next_report:
            return
        self._next_report = now + _REPORT_EVERY_SECONDS
        place = WorkerPlace(self._connection.worker, stage, done, total)
        frames = [self._connection.endpoint.token, *encode_place(place)]
        # If the queue is full, this report is lost.
        with suppress(zmq.Again):
            self._connection.socket.send_multipart(frames, flags=zmq.NOBLOCK)


# This worker process's link to its trainer.
TRAINER = TrainerLink()
