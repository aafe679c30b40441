"""The process that judges: confined, it takes batches of answers and leaves their scores in the result table.

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

# What a worker says: it is confined and waits for work; the batch is judged; it should be replaced, and what it has not
# judged of the batch is left.
READY, DONE, WORN = b"R", b"D", b"W"
# A worker is replaced after this much computing, so that what scorers cache does not pile up. The kernel ends it where
# the last answer's own time and these seconds are over as well: an orphan does not compute for ever.
_WORN_AFTER_CPU_SECONDS = 60
_SPARE_CPU_SECONDS = 2
_LENGTH = struct.Struct("<Q")
# Faster than this, no answer can have used much memory.
_QUICK_SECONDS = 0.005


def work(
    channel: socket.socket,
    table: ResultTable,
    judges: Mapping[int, Judge],
    *,
    timeout_s: float,
    memory_mb: int,
    allow_unconfined: bool,
) -> None:
    """Serve batches until the other end of `channel` closes. Says why on `channel` where it can't be confined."""
    _close_all_but(channel.fileno(), table.fd)
    memory_bytes = memory_mb << 20
    limit_resources(
        memory_bytes=memory_bytes + (memory_bytes >> 1),
        cpu_seconds=_WORN_AFTER_CPU_SECONDS + int(timeout_s) + _SPARE_CPU_SECONDS,
    )
    try:
        confine(memory_bytes=memory_bytes)
    except NotConfined as reason:
        if not allow_unconfined:
            channel.sendall(str(reason).encode())
            return
    os.write(channel.fileno(), READY)
    wear = _Wear(memory_bytes)
    while batch := receive(channel.fileno()):
        for position, (judge, answer, entry) in enumerate(batch):
            _judge(table, position, judges[judge], answer, entry, wear)
            if wear.is_worn:
                # The next answer would have too little left; the rest of the batch is for another worker.
                break
        wear.look()
        os.write(channel.fileno(), WORN if wear.is_worn else DONE)


def message(batch: Sequence[tuple[int, str, Mapping[str, Any]]]) -> bytes:
    """A batch as a worker receives it: (number of the judge, answer, entry) of each."""
    content = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def receive(fd: int) -> list[tuple[int, str, Mapping[str, Any]]] | None:
    """The next batch, None at the end."""
    header = _read_all(fd, _LENGTH.size)
    if header is None:
        return None
    content = _read_all(fd, *_LENGTH.unpack(header))
    return None if content is None else pickle.loads(content)


def _judge(table: ResultTable, position: int, judge: Judge, answer: str, entry: Any, wear: "_Wear") -> None:
    started = table.begin(position)
    try:
        accuracy = float(judge(answer, entry))
        seconds = time.monotonic() - started
        # A scorer may swallow the MemoryError and pay for the answer nevertheless.
        if seconds > _QUICK_SECONDS and wear.look():
            raise MemoryError
        table.judged(position, accuracy, seconds)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the answer's too.
        table.raised(position, error, time.monotonic() - started)


class _Wear:
    """Watches how much memory, at its peak and on top of what there was at the start, and time the process has used."""

    def __init__(self, memory_bytes: int):
        self._memory_bytes = memory_bytes
        self._at_start = self._peak()
        self.is_worn = False

    def look(self) -> bool:
        """Note whether the process should be replaced; whether its memory is used up."""
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
    # What is open already could still be written to.
    devnull = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(devnull, fd)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
