"""The confined workers and the thread that keeps them busy: hands out batches, holds deadlines, replaces the dead."""

import collections
import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from rgtrain.problems.scoring.confinement import MEMORY_SIGNAL, NotConfined
from rgtrain.problems.scoring.forking import ForkServer
from rgtrain.problems.scoring.result_table import CAPACITY, ResultTable
from rgtrain.problems.scoring.score import Score
from rgtrain.problems.scoring.worker import DONE, READY, WORN, message

# A batch that takes workers down before they judge anything is no answer's fault.
_MAX_ATTEMPTS = 3
# A worker is confined within milliseconds of its fork; on a stalled machine it may take long.
_START_SECONDS = 60


class Item(NamedTuple):
    """One answer to judge. `is_executed`: its scorer may run it as code, so it gets a process of its own."""

    judge: int
    answer: str
    entry: Mapping[str, Any]
    is_executed: bool


class _Job:
    """What one call of `submit` asked for."""

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.last_judge = max(item.judge for item in items)
        self.future: Future[list[Score]] = Future()
        # It can't be cancelled any more: this thread sets its result.
        self.future.set_running_or_notify_cancel()
        self._scores: list[Score | None] = [None] * len(items)
        self._num_left = len(items)

    def record(self, scores: Iterable[tuple[int, Score]]) -> None:
        for position, score in scores:
            self._scores[position] = score
            self._num_left -= 1
        if not self._num_left:
            self.future.set_result(self._scores)


@dataclass
class _Batch:
    job: _Job
    positions: Sequence[int]
    num_attempts: int = 0

    @property
    def is_executed(self) -> bool:
        return self.job.items[self.positions[0]].is_executed

    def message(self) -> bytes:
        return message([self.job.items[position][:3] for position in self.positions])


class _Worker:
    """One process and our ends of it: what it is doing, and since when."""

    def __init__(self, server: ForkServer, *, num_judges: int, settings: Mapping[str, Any]):
        self.num_judges = num_judges
        self.is_ready = False
        self.is_worn = False
        self.batch: _Batch | None = None
        self.watched = (-1, 0.0)
        self.since = time.monotonic()
        self.table = ResultTable()
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.pid = server.fork(theirs, self.table.fd, **settings)

    def assign(self, batch: _Batch) -> None:
        self.batch = batch
        batch.num_attempts += 1
        self.is_worn = batch.is_executed
        self.since = time.monotonic()
        self.table.clear()
        # If it is dead, the next look at its channel tells.
        with contextlib.suppress(OSError):
            self.channel.sendall(batch.message())

    def hear(self) -> bytes:
        """What it said; nothing if it is dead."""
        try:
            return self.channel.recv(4096)
        except OSError:
            return b""

    def deadline(self, timeout_s: float) -> float | None:
        """When it has to be done with what it does; None where it does nothing."""
        if not self.is_ready:
            return self.since + _START_SECONDS
        if self.batch is None:
            return None
        self.watched = self.running()
        return self.watched[1] + timeout_s

    def running(self) -> tuple[int, float]:
        """The position of the answer it judges, -1 for none, and since when."""
        if self.batch.is_executed:
            # Text that is executed might write something else into the table.
            return 0, self.since
        position, started = self.table.running()
        return int(position), max(self.since, started)

    def scores(self) -> list[Score | None]:
        return self.table.scores(len(self.batch.positions), elapsed_s=time.monotonic() - self.since)

    def close(self) -> None:
        self.channel.close()
        self.table.close()


class Pool:
    """`num_workers` confined processes. `submit` from any thread; scores come in futures.

    Raises NotConfined where the kernel refuses confinement and `allow_unconfined` is not set.
    """

    def __init__(self, *, num_workers: int, timeout_s: float, memory_mb: int, allow_unconfined: bool):
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._settings = {"timeout_s": timeout_s, "memory_mb": memory_mb, "allow_unconfined": allow_unconfined}
        self._num_judges = 0
        self._inbox: collections.deque[_Job] = collections.deque()
        self._batches: collections.deque[_Batch] = collections.deque()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed: BaseException | None = None
        self._bell, self._bell_rope = socket.socketpair()
        self._bell_rope.setblocking(False)
        self._server = ForkServer()
        try:
            self._hire()
            while not all(worker.is_ready for worker in self._workers):
                self._wait()
        except BaseException:
            self._end()
            raise
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def prepare(self, *, dataset: str, params: str) -> tuple[int, str | None]:
        """Have the scorer of `dataset` with `params` (a dumped entry) ready. Raises ConfigError.

        Returns the number to ask for it by, and the only field of an entry that it reads, None where it reads several.
        """
        field = self._server.prepare(self._num_judges, dataset=dataset, params=params)
        self._num_judges += 1
        return self._num_judges - 1, field

    def submit(self, items: Sequence[Item]) -> "Future[list[Score]]":
        """Have `items`, at least one, judged; their scores in order."""
        job = _Job(items)
        with self._lock:
            if self._closed is not None:
                raise RuntimeError("the scorer is closed") from self._closed
            self._inbox.append(job)
        self._ring()
        return job.future

    def close(self) -> None:
        """End all processes; what is not judged yet never will be."""
        with self._lock:
            self._closed = self._closed or RuntimeError("closed while answers were waiting")
        self._ring()
        self._thread.join()
        self._bell.close()
        self._bell_rope.close()

    def _ring(self) -> None:
        # If it can't take more, it rings already.
        with contextlib.suppress(BlockingIOError):
            self._bell_rope.send(b"!")

    def _run(self) -> None:
        try:
            while self._closed is None:
                self._admit()
                self._hand_out()
                self._hire()
                self._wait()
        except BaseException as error:
            self._closed = error
        with self._lock:
            for job in self._open_jobs():
                job.future.set_exception(self._closed)
        self._end()

    def _open_jobs(self) -> Iterator[_Job]:
        batches = [*self._batches, *(worker.batch for worker in self._workers if worker.batch)]
        jobs = [*self._inbox, *(batch.job for batch in batches)]
        yield from {id(job): job for job in jobs}.values()

    def _end(self) -> None:
        for worker in self._workers:
            worker.close()
        self._server.close()

    def _admit(self) -> None:
        while self._inbox:
            job = self._inbox.popleft()
            executed = [position for position, item in enumerate(job.items) if item.is_executed]
            # First what may take long.
            self._batches.extend(_Batch(job, [position]) for position in executed)
            others = [position for position, item in enumerate(job.items) if not item.is_executed]
            # Two batches a worker: few enough to cost little, enough to even out.
            size = min(CAPACITY, -(-len(others) // (2 * self._num_workers)))
            self._batches.extend(_Batch(job, others[i : i + size]) for i in range(0, len(others), size or 1))

    def _hand_out(self) -> None:
        num_busy = sum(worker.batch is not None for worker in self._workers)
        idle = [worker for worker in self._workers if worker.batch is None and worker.is_ready]
        while self._batches and num_busy < self._num_workers:
            needed = self._batches[0].job.last_judge
            for worker in [worker for worker in idle if worker.num_judges <= needed]:
                # It was forked before this scorer was there.
                idle.remove(worker)
                self._dismiss(worker)
            if not idle:
                return
            idle.pop().assign(self._batches.popleft())
            num_busy += 1

    def _hire(self) -> None:
        # One that judges its last batch is replaced while it does.
        while sum(not worker.is_worn for worker in self._workers) < self._num_workers:
            self._workers.append(_Worker(self._server, num_judges=self._num_judges, settings=self._settings))

    def _wait(self) -> None:
        """Wait until a worker says something, one is late or the bell rings, and see to it."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        by_fd = {worker.channel.fileno(): worker for worker in self._workers}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        deadlines = [worker.deadline(self._timeout_s) for worker in self._workers]
        soonest = min((deadline for deadline in deadlines if deadline is not None), default=None)
        patience = None if soonest is None else max(0.0, soonest - time.monotonic()) * 1000 + 1
        for fd, _ in poll.poll(patience):
            if fd in by_fd:
                self._attend(by_fd[fd])
            else:
                self._bell.recv(4096)
        now = time.monotonic()
        for worker in list(self._workers):
            deadline = worker.deadline(self._timeout_s)
            if deadline is not None and deadline <= now:
                self._bury(worker, is_late=True)

    def _attend(self, worker: _Worker) -> None:
        said = worker.hear()
        if not worker.is_ready:
            if said and said != READY:
                raise NotConfined(said.decode(errors="replace"))
            worker.is_ready = said == READY
            if said:
                return
        batch = worker.batch
        if batch is None or said not in (DONE, WORN):
            self._bury(worker)
            return
        scores = worker.scores()
        if None in scores and (batch.is_executed or said == DONE):
            self._bury(worker)  # It lies.
            return
        worker.batch = None
        self._settle(batch, scores)
        if worker.is_worn or said == WORN:
            self._dismiss(worker)

    def _settle(self, batch: _Batch, scores: Sequence[Score | None]) -> None:
        """Record what is judged of `batch`; the rest waits anew."""
        pairs = list(zip(batch.positions, scores, strict=True))
        batch.job.record((position, score) for position, score in pairs if score is not None)
        left = [position for position, score in pairs if score is None]
        if left:
            num_attempts = batch.num_attempts if len(left) == len(scores) else 0
            self._batches.appendleft(_Batch(batch.job, left, num_attempts))

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        # Not left to the server alone: it may be busy preparing a scorer.
        os.kill(worker.pid, signal.SIGKILL)
        self._server.release(worker.pid)
        worker.close()

    def _bury(self, worker: _Worker, *, is_late: bool = False) -> None:
        """End `worker` and settle its batch: the answer it was at gets the reason as its error."""
        batch = worker.batch
        if batch is None and worker.is_ready:
            self._dismiss(worker)
            return
        if batch is None:
            raise RuntimeError(f"a scoring worker ended at its start with wait status {self._server.end(worker.pid)}")
        position, started = worker.watched if is_late else worker.running()
        scores = worker.scores()
        seconds = time.monotonic() - started
        error = "timeout" if is_late else _cause(self._server.end(worker.pid))
        if is_late:
            self._dismiss(worker)
        else:
            self._workers.remove(worker)
            worker.close()
        if batch.is_executed and scores[0] and not scores[0].error:
            scores[0] = None  # It was not judged to the end, whatever the table says.
        if 0 <= position < len(scores) and scores[position] is None:
            scores[position] = Score(0.0, error, seconds)
        elif batch.num_attempts == _MAX_ATTEMPTS:
            raise RuntimeError("scoring workers end before they judge anything")
        self._settle(batch, scores)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return {MEMORY_SIGNAL: "memory", signal.SIGXCPU: "timeout"}.get(os.WTERMSIG(status), "crash")
    return "crash"
