"""The confined process that judges batches of answers and writes their scores to the result table.

Only this process runs scorers on untrusted text.
"""

import os
import pickle
import resource
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rgtrain.problems.own_rewards import OwnReward
from rgtrain.problems.scoring.confinement import NotConfined, confine, limit_resources
from rgtrain.problems.scoring.result_table import ResultTable

Judge = Callable[[str, Mapping[str, Any]], float]

# Messages of a worker. READY means that it is confined and waits for work. DONE means that the batch is judged. RECYCLE
# means that the worker must be replaced, and another worker must judge the rest of the batch.
READY, DONE, RECYCLE = b"R", b"D", b"W"
# Exit status of a worker that has too little memory to read the batch.
OUT_OF_MEMORY = 77
# A worker is replaced after this CPU time, because the caches of scorers grow.
_RECYCLE_AFTER_CPU_SECONDS = 60
_SPARE_CPU_SECONDS = 2
_LENGTH = struct.Struct("<Q")
# An answer that took less time than this cannot have used much memory.
_QUICK_SECONDS = 0.005


def cpu_limit(timeout_s: float) -> int:
    """Return the CPU time limit of a worker in seconds. The kernel enforces it, so that no orphan runs forever."""
    return _RECYCLE_AFTER_CPU_SECONDS + int(timeout_s) + _SPARE_CPU_SECONDS


def work(
    channel: socket.socket,
    table: ResultTable,
    judges: Mapping[int, Judge | OwnReward],
    *,
    timeout_s: float,
    memory_mb: int,
    allow_unconfined: bool,
) -> None:
    """Serve batches until the other end of `channel` closes.

    If the kernel refuses to confine this process, send the reason on `channel` and return.

    Args:
        channel: Receives batches, and sends READY, DONE and RECYCLE.
        table: Receives the scores of a batch.
        judges: All scorers and own reward functions by number.
        timeout_s: CPU seconds allowed per answer; the pool enforces it.
        memory_mb: Memory in MiB allowed in addition to the current use.
        allow_unconfined: Judge even if the kernel refuses confinement.
    """
    _close_all_but(channel.fileno(), table.fd)
    memory_bytes = memory_mb << 20
    limit_resources(memory_bytes=memory_bytes + (memory_bytes >> 1), cpu_seconds=cpu_limit(timeout_s))
    try:
        confine(memory_bytes=memory_bytes)
    except NotConfined as reason:
        if not allow_unconfined:
            channel.sendall(str(reason).encode())
            return
    os.write(channel.fileno(), READY)
    usage = _Usage(memory_bytes)
    while batch := _next_batch(channel.fileno()):
        for position, (judge, answer, entry) in enumerate(batch):
            _judge(table, position, judges[judge], answer, entry, usage)
            if usage.needs_recycling:
                # The next answer would have too little memory or time left.
                break
        usage.update()
        os.write(channel.fileno(), RECYCLE if usage.needs_recycling else DONE)


def message(batch: Sequence[tuple[int, Any, Mapping[str, Any] | None]]) -> bytes:
    """Serialise a batch for a worker.

    Args:
        batch: The number of the judge, the answer and its entry, for each answer. A reward function gets completions in
            place of the answer.

    Returns:
        The bytes to send on the channel.
    """
    content = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def receive(fd: int) -> list[tuple[int, Any, Mapping[str, Any] | None]] | None:
    """Return the next batch from `fd`, or None at the end of the stream."""
    header = _read_all(fd, _LENGTH.size)
    if header is None:
        return None
    content = _read_all(fd, *_LENGTH.unpack(header))
    return None if content is None else pickle.loads(content)


def _next_batch(fd: int) -> list[tuple[int, Any, Mapping[str, Any] | None]] | None:
    try:
        return receive(fd)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _judge(
    table: ResultTable, position: int, judge: Judge | OwnReward, answer: Any, entry: Any, usage: "_Usage"
) -> None:
    started = table.begin(position)
    try:
        result = judge.values(answer) if isinstance(judge, OwnReward) else float(judge(answer, entry))
        seconds = time.monotonic() - started
        # A scorer may catch the MemoryError and still return a score.
        if seconds > _QUICK_SECONDS and usage.update():
            raise MemoryError
        if isinstance(result, list):
            table.rewarded(position, result, seconds)
        else:
            table.judged(position, result, seconds)
    except BaseException as error:  # An answer can also raise SystemExit and KeyboardInterrupt.
        message = _message(error) if isinstance(judge, OwnReward) else ""
        table.raised(position, error, time.monotonic() - started, message=message)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # An exception class of the user may fail here too.
        return ""


class _Usage:
    """The CPU time and the increase in peak memory of this process."""

    def __init__(self, memory_bytes: int):
        self._memory_bytes = memory_bytes
        self._at_start = self._peak()
        self.needs_recycling = False

    def update(self) -> bool:
        """Set `needs_recycling` if the process must be replaced, and return whether its memory is exhausted."""
        used = self._peak() - self._at_start
        self.needs_recycling = used > self._memory_bytes // 2 or time.process_time() > _RECYCLE_AFTER_CPU_SECONDS
        return used > self._memory_bytes

    @staticmethod
    def _peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _read_all(fd: int, num_bytes: int) -> bytes | None:
    parts = []
    while num_bytes:
        part = os.read(fd, min(num_bytes, 1 << 20))
        if not part:
            return None
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _close_all_but(*kept: int) -> None:
    # A confined process can still write to file descriptors that are open.
    devnull = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(devnull, fd)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
