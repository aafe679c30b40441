"""The confined process that judges: it takes batches of answers and writes their scores into the result table.

Only this process ever runs a scorer on untrusted text.
"""

import os
import pickle
import resource
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rgtrain.problems.scoring.confinement import NotConfined, confine, limit_resources
from rgtrain.problems.scoring.result_table import ResultTable

Judge = Callable[[str, Mapping[str, Any]], float]

# The messages of a worker: READY, it is confined and waits for work; DONE, the batch is judged; WORN, it should be
# replaced, and another worker should judge the rest of the batch.
READY, DONE, WORN = b"R", b"D", b"W"
# The exit status of a worker whose memory is too small for the batch itself.
OUT_OF_MEMORY = 77
# A worker is replaced after this much computing, so that the caches of scorers do not pile up.
_WORN_AFTER_CPU_SECONDS = 60
_SPARE_CPU_SECONDS = 2
_LENGTH = struct.Struct("<Q")
# An answer that took less than this cannot have used much memory.
_QUICK_SECONDS = 0.005


def cpu_limit(timeout_s: float) -> int:
    """Return the CPU seconds after which the kernel ends a worker, so that an orphan does not compute forever."""
    return _WORN_AFTER_CPU_SECONDS + int(timeout_s) + _SPARE_CPU_SECONDS


def work(
    channel: socket.socket,
    table: ResultTable,
    judges: Mapping[int, Judge],
    *,
    timeout_s: float,
    memory_mb: int,
    allow_unconfined: bool,
) -> None:
    """Serve batches until the other end of `channel` closes.

    If the kernel refuses to confine this process, the reason is sent on `channel` and nothing is served.

    Args:
        channel: Batches come in here; READY, DONE and WORN go out.
        table: Where the scores of a batch are written.
        judges: All scorers, by number.
        timeout_s: CPU seconds that an answer may use; the pool enforces it.
        memory_mb: Memory that this process may use on top of its present use.
        allow_unconfined: Serve even if the kernel refuses confinement.
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
            if usage.is_worn:
                # The next answer would have too little left; another worker judges the rest of the batch.
                break
        usage.update()
        os.write(channel.fileno(), WORN if usage.is_worn else DONE)


def message(batch: Sequence[tuple[int, str, Mapping[str, Any]]]) -> bytes:
    """Return a batch as a worker receives it; each item is the number of the judge, the answer and its entry."""
    content = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def receive(fd: int) -> list[tuple[int, str, Mapping[str, Any]]] | None:
    """Return the next batch from `fd`, or None at the end."""
    header = _read_all(fd, _LENGTH.size)
    if header is None:
        return None
    content = _read_all(fd, *_LENGTH.unpack(header))
    return None if content is None else pickle.loads(content)


def _next_batch(fd: int) -> list[tuple[int, str, Mapping[str, Any]]] | None:
    try:
        return receive(fd)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _judge(table: ResultTable, position: int, judge: Judge, answer: str, entry: Any, usage: "_Usage") -> None:
    started = table.begin(position)
    try:
        accuracy = float(judge(answer, entry))
        seconds = time.monotonic() - started
        # A scorer may swallow the MemoryError and still pay for the answer.
        if seconds > _QUICK_SECONDS and usage.update():
            raise MemoryError
        table.judged(position, accuracy, seconds)
    except BaseException as error:  # SystemExit and KeyboardInterrupt can come from the answer too.
        table.raised(position, error, time.monotonic() - started)


class _Usage:
    """Memory and time that the process has used: the peak of its memory counts, beyond the memory it started with."""

    def __init__(self, memory_bytes: int):
        self._memory_bytes = memory_bytes
        self._at_start = self._peak()
        self.is_worn = False

    def update(self) -> bool:
        """Set `is_worn` if the process should be replaced; return whether its memory is used up."""
        used = self._peak() - self._at_start
        self.is_worn = used > self._memory_bytes // 2 or time.process_time() > _WORN_AFTER_CPU_SECONDS
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
    # A descriptor that is open already could still be written to.
    devnull = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(devnull, fd)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
