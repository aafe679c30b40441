"""The connection between the workers and their trainer: rollout groups and reports of progress.

It lasts as long as the run. On one machine it is a Unix socket in a folder that no other user can enter. Between
machines it is TCP with CurveZMQ, which encrypts and accepts only peers that know the trainer's public key. Every
message also carries the run's random token. Workers get address, key and token as an argument of a Ray call.
"""

import asyncio
import hmac
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    WorkerPlace,
    decode_group,
    decode_header,
    decode_place,
    encode_group,
    encode_place,
)

_TOKEN_BYTES = 32
_REPORT_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Endpoint:
    """The address and the secrets that a worker needs to reach its trainer."""

    address: str
    token: bytes = field(repr=False)
    # CurveZMQ's public key of the trainer; None on a Unix socket.
    server_key: bytes | None = field(default=None, repr=False)


class WorkerChannel:
    """The trainer's end. A thread receives; nothing that arrives is trusted before it has been checked."""

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
            folder: The private folder for a Unix socket, if all workers are on this machine.
            host: Otherwise this machine's address, at which other machines reach it.
            moved: Called from the receiving thread when a worker reports progress.
            warn: Called from the receiving thread with a line about messages that were dropped.

        Raises:
            ConfigError: The folder is open to other users, or ZeroMQ cannot encrypt.
        """
        self._limits = limits
        self._moved = moved
        self._warn = warn
        self._lock = threading.Lock()
        self._awaited: dict[str, tuple[int, Callable[[Group | MalformedMessage], None]]] = {}
        self._num_dropped: dict[str, int] = {}
        self._context = zmq.Context()
        socket = self._context.socket(zmq.PULL)
        # A peer that sends more is disconnected before it can fill the memory.
        socket.maxmsgsize = limits.max_frame_bytes
        token = secrets.token_bytes(_TOKEN_BYTES)
        if folder is not None:
            self.endpoint = Endpoint(_bind_locally(socket, folder), token)
        else:
            self.endpoint = _bind_encrypted(socket, str(host), token)
        threading.Thread(target=self._receive, args=(socket,), daemon=True, name="worker-channel").start()

    def close(self) -> None:
        """Close the socket and end the thread."""
        # Ends the thread's wait by an exception; the thread closes the socket, which this waits for.
        self._context.term()

    @property
    def num_dropped(self) -> int:
        """The number of messages that were dropped so far, because nothing awaited them or they had no token."""
        return sum(self._num_dropped.values())

    @contextmanager
    def awaiting(
        self, uids: Iterable[str], *, num_completions: int
    ) -> Iterator["asyncio.Queue[Group | MalformedMessage]"]:
        """Accept one group for each of `uids` for the duration of the block; call it on a running event loop.

        Yields:
            The queue of these groups as they arrive. A malformed one comes as its error.
        """
        arrivals: asyncio.Queue[Group | MalformedMessage] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(arrival: Group | MalformedMessage) -> None:
            loop.call_soon_threadsafe(arrivals.put_nowait, arrival)

        uids = list(uids)
        with self._lock:
            if twice := self._awaited.keys() & set(uids):
                raise ValueError(f"groups are awaited already: {sorted(twice)}")
            self._awaited.update((uid, (num_completions, deliver)) for uid in uids)
        try:
            yield arrivals
        finally:
            with self._lock:
                for uid in uids:
                    self._awaited.pop(uid, None)

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
        except MalformedMessage as error:
            # A worker of this run sent it, perhaps in place of a group: the batch cannot become complete.
            with self._lock:
                deliveries = {deliver for _, deliver in self._awaited.values()}
            for deliver in deliveries:
                deliver(error)
            if not deliveries:
                self._drop(f"that is malformed ({error})")
            return
        with self._lock:
            awaited = self._awaited.pop(header["uid"], None)
        if awaited is None:
            self._drop("with a group that was not awaited, or not again")
            return
        num_completions, deliver = awaited
        try:
            deliver(decode_group(header, rest[1:], num_completions=num_completions, limits=self._limits))
        except MalformedMessage as error:
            deliver(error)

    def _drop(self, reason: str) -> None:
        self._num_dropped[reason] = self._num_dropped.get(reason, 0) + 1
        if self._num_dropped[reason] == 1:
            self._warn(f"warning: dropped a message {reason}; later ones are dropped silently")


def _bind_locally(socket: zmq.Socket[bytes], folder: Path) -> str:
    """Bind to a Unix socket with a random name in `folder`; its address."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{folder} is open to other users; the workers' socket needs a folder of mode 0700")
    address = f"ipc://{folder / secrets.token_hex(4)}"
    socket.bind(address)
    return address


def _bind_encrypted(socket: zmq.Socket[bytes], host: str, token: bytes) -> Endpoint:
    """Bind to a random TCP port of `host` with CurveZMQ."""
    if not zmq.has("curve"):
        raise ConfigError(
            "the installed ZeroMQ cannot encrypt, which workers on several machines need; install pyzmq's own wheel: "
            "pip install --force-reinstall --only-binary :all: pyzmq"
        )
    public_key, secret_key = zmq.curve_keypair()
    socket.curve_server, socket.curve_secretkey, socket.curve_publickey = True, secret_key, public_key
    port = socket.bind_to_random_port(f"tcp://{host}")
    return Endpoint(f"tcp://{host}:{port}", token, public_key)


@dataclass(frozen=True)
class _Connection:
    """A socket that is connected to the trainer at `endpoint`, and this worker's number."""

    socket: zmq.Socket[bytes]
    endpoint: Endpoint
    worker: int


class TrainerLink:
    """A worker's end. Until it is connected, reports of progress go nowhere. Used by one thread at a time."""

    def __init__(self) -> None:
        self._connection: _Connection | None = None
        self._next_report = 0.0

    def connect(self, endpoint: Endpoint, *, worker: int) -> None:
        """Connect to the trainer as worker number `worker`; a no-op if that is done."""
        if self._connection is not None and self._connection.endpoint == endpoint:
            return
        self.close()
        # The process's own context. If a context is garbage together with a socket of its, ZeroMQ may wait without end
        # for the socket to be closed.
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        # The trainer outlives its workers, or they end with it: nothing is worth waiting for at the exit.
        socket.linger = 0
        if endpoint.server_key is not None:
            socket.curve_serverkey = endpoint.server_key
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(endpoint.address)
        self._connection = _Connection(socket, endpoint, worker)

    def close(self) -> None:
        """Disconnect; what has not been sent yet is lost."""
        if self._connection is not None:
            self._connection.socket.close()
        self._connection = None

    def send(self, group: Group) -> None:
        """Send a group; waits while the trainer has very many to receive.

        Raises:
            RuntimeError: The link is not connected.
        """
        if self._connection is None:
            raise RuntimeError("a worker must connect to its trainer before it sends a group")
        self._connection.socket.send_multipart([self._connection.endpoint.token, *encode_group(group)], copy=False)

    def moved(self, stage: str, done: int, total: int | None = None) -> None:
        """Report that `done` of `total` of `stage` (see STAGES) are finished.

        Call it after every bit of real progress: it sends at most one message a second, and never waits.
        """
        now = time.monotonic()
        if self._connection is None or now < self._next_report:
            return
        self._next_report = now + _REPORT_EVERY_SECONDS
        place = WorkerPlace(self._connection.worker, stage, done, total)
        frames = [self._connection.endpoint.token, *encode_place(place)]
        # If the queue is full, because the trainer has more to receive than it holds, this report is lost.
        with suppress(zmq.Again):
            self._connection.socket.send_multipart(frames, flags=zmq.NOBLOCK)


TRAINER = TrainerLink()
