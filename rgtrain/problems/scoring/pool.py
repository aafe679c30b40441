"""The pool of confined workers: one thread hands out batches, enforces time limits and replaces workers that end.

Time limits. An answer may use `timeout_s` seconds of CPU time. So a suspended process tree, a debugger or busy
processors do not use up an answer's time. Two limits hold by the wall clock, because a blocked worker uses no CPU time:
`BLOCKED_FACTOR` times `timeout_s` for a worker that is blocked, and `WALL_FACTOR` times `timeout_s` for one that waits
for a processor or a disk. Time in which the pool itself stood still does not count.

Workers that end. An answer whose worker crashed, hung or ran out of memory scores 0 with that error. If the worker was
killed or stopped from outside, as by the kernel's out-of-memory killer, another worker judges the answer again, up to
`_MAX_ATTEMPTS` times.
"""

import collections
import contextlib
import logging
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
from rgtrain.problems.scoring.forking import ForkServer, WorkerExit
from rgtrain.problems.scoring.process_state import cpu_seconds, is_exiting, run_state
from rgtrain.problems.scoring.result_table import CAPACITY, ResultTable
from rgtrain.problems.scoring.score import Score
from rgtrain.problems.scoring.scoring_worker import DONE, OUT_OF_MEMORY, READY, WORN, cpu_limit, message

_LOG = logging.getLogger(__name__)

BLOCKED_FACTOR = 3
WALL_FACTOR = 20
_MAX_ATTEMPTS = 3
# A worker is confined within milliseconds of its fork; on a stalled machine it may take long.
_START_SECONDS = 60
# A worker may use this much CPU time to read a batch, even if an answer may use less.
_READ_SECONDS = 1.0
# While workers are busy, the pool looks at them this often; a longer gap is a standstill of the pool itself.
_LOOK_SECONDS = 0.25
# If the machine cannot start workers, the pool tries again after a pause, and gives up after this long without any.
_PAUSE_SECONDS = 0.2
_GIVE_UP_SECONDS = 30
_SERVER_PAUSES = (0.5, 2.0, 8.0)
# Reading a batch takes up to six times its size: in pieces, whole, and as text of four bytes a character.
_MAX_BATCH_BYTES = 4 << 20
_SHARE_OF_MEMORY = 32


class Item(NamedTuple):
    """One answer to judge. `is_executed`: its scorer may run it as code, so it gets a process of its own."""

    judge: int
    answer: str
    entry: Mapping[str, Any]
    is_executed: bool


class _Job:
    """The items of one call of `submit` and the future of their scores."""

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.last_judge = max(item.judge for item in items)
        self.future: Future[list[Score]] = Future()
        # A running future cannot be cancelled: the pool's thread sets its result.
        self.future.set_running_or_notify_cancel()
        self._scores: dict[int, Score] = {}

    def record(self, scores: Iterable[tuple[int, Score]]) -> None:
        self._scores.update(scores)
        if len(self._scores) == len(self.items):
            self.future.set_result([self._scores[position] for position in range(len(self.items))])


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

    def halves(self) -> tuple["_Batch", "_Batch"]:
        middle = len(self.positions) // 2
        return _Batch(self.job, self.positions[:middle]), _Batch(self.job, self.positions[middle:])


class _Worker:
    """One process and our ends of its channel and table: its batch, and how long it has worked on one answer.

    Raises OSError if the machine has no process, memory or descriptor left.
    """

    def __init__(self, server: ForkServer, *, num_judges: int, settings: Mapping[str, Any], now: float):
        self.num_judges = num_judges
        self.is_ready = False
        self.is_worn = False
        self.batch: _Batch | None = None
        self.assigned_at = 0.0
        self._unsent = memoryview(b"")
        with contextlib.ExitStack() as opened:
            self.table = ResultTable()
            opened.callback(self.table.close)
            self.channel, theirs = socket.socketpair()
            opened.callback(self.channel.close)
            with theirs:
                self.pid = server.fork(theirs, self.table.fd, **settings)
            opened.pop_all()
        self.channel.setblocking(False)
        self._restart_clocks(now)

    def _restart_clocks(self, now: float) -> None:
        self._progress = self._progress_now()
        self._cpu_at, self._wall_at = cpu_seconds(self.pid), now

    def _progress_now(self) -> tuple[int, int, float]:
        """A value that changes whenever the worker gets on: bytes it has not taken yet, and the answer it judges."""
        return (len(self._unsent), *self.running())

    def assign(self, batch: _Batch, content: bytes, *, now: float) -> None:
        """Begin to send `batch`, whose message is `content`. `now`: by the pool's clock."""
        self.batch = batch
        batch.num_attempts += 1
        self.is_worn = batch.is_executed
        self.assigned_at = time.monotonic()
        self.table.clear()
        self._unsent = memoryview(content)
        self.send()
        self._restart_clocks(now)

    @property
    def is_sending(self) -> bool:
        return bool(self._unsent)

    def send(self) -> None:
        """Send as much of the batch as the channel takes without blocking."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.channel.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            # The worker is dead; its channel will say so.
            self._unsent = memoryview(b"")

    def hear(self) -> bytes | None:
        """Return the worker's message, empty if it closed its channel, None if there is none."""
        try:
            return self.channel.recv(4096)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def running(self) -> tuple[int, float]:
        """Return the position of the answer being judged, -1 for none, and since when."""
        if self.batch is None:
            return -1, 0.0
        if self.batch.is_executed:
            # Text that is executed could write something else into the table.
            return 0, self.assigned_at
        position, started = self.table.running()
        return int(position), max(self.assigned_at, started)

    def patience(self, *, timeout_s: float, now: float) -> float:
        """Return the seconds in which this worker cannot exceed a limit; 0 or less if it has exceeded one."""
        if not self.is_ready:
            return _START_SECONDS - (now - self._wall_at)
        if self.batch is None:
            return float("inf")
        if self._progress_now() != self._progress:
            self._restart_clocks(now)
        wall = now - self._wall_at
        is_judging = not self._unsent and self._progress[1] >= 0
        limit = timeout_s if is_judging else max(timeout_s, _READ_SECONDS)
        cpu_left = limit - (cpu_seconds(self.pid) - self._cpu_at)
        wall_left = BLOCKED_FACTOR * limit - wall
        # D: waiting for a disk, as for memory that was swapped out. The answer cannot bring that about.
        if wall_left <= 0 and run_state(self.pid) in "RD":
            wall_left = min(limit, WALL_FACTOR * limit - wall)
        return min(cpu_left, wall_left)

    def scores(self) -> list[Score | None]:
        """Return the scores of its batch in order, None if not judged; without a batch there are none."""
        num_answers = len(self.batch.positions) if self.batch else 0
        return self.table.scores(num_answers, elapsed_s=time.monotonic() - self.assigned_at)

    def close(self) -> None:
        self.channel.close()
        self.table.close()


class Pool:
    """`num_workers` confined processes. `submit` from any thread; scores come in futures.

    Args:
        num_workers: Number of processes.
        timeout_s: CPU seconds that an answer may use.
        memory_mb: Memory that judging an answer may use.
        allow_unconfined: Judge even if the kernel refuses confinement.

    Raises:
        NotConfined: The kernel refuses confinement and `allow_unconfined` is not set.
        RuntimeError: The machine cannot start the processes.
    """

    def __init__(self, *, num_workers: int, timeout_s: float, memory_mb: int, allow_unconfined: bool):
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._max_batch_bytes = min(_MAX_BATCH_BYTES, (memory_mb << 20) // _SHARE_OF_MEMORY)
        self._settings = {"timeout_s": timeout_s, "memory_mb": memory_mb, "allow_unconfined": allow_unconfined}
        self._num_judges = 0
        self._inbox: collections.deque[_Job] = collections.deque()
        self._batches: collections.deque[_Batch] = collections.deque()
        self._workers: list[_Worker] = []
        # Seconds in which this pool's thread should have run and did not, and when it ran last.
        self._standstill = 0.0
        self._ran_at = time.monotonic()
        # When limits are checked next, when the next worker may start, and since when none could; by `_now`.
        self._check_at = 0.0
        self._spawn_at = 0.0
        self._failing_since: float | None = None
        self._has_warned = False
        self._lock = threading.Lock()
        self._closed: BaseException | None = None
        self._wakeup, self._wakeup_sender = socket.socketpair()
        self._wakeup_sender.setblocking(False)
        self._server = _started_server()
        try:
            while self._is_starting():
                self._spawn()
                self._wait()
        except BaseException:
            self._end()
            raise
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def _is_starting(self) -> bool:
        # If the machine has too little left for all workers, some are enough.
        num_ready = sum(worker.is_ready for worker in self._workers)
        return num_ready < self._num_workers and not (num_ready and self._failing_since is not None)

    def prepare(self, *, dataset: str, params: str) -> tuple[int, str | None]:
        """Load the scorer of `dataset` with `params` (a dumped entry).

        Returns:
            The number of the judge, and the only field of an entry that it reads, None if it reads several.

        Raises:
            ConfigError: There is no such scorer.
        """
        field = self._server.prepare(self._num_judges, dataset=dataset, params=params)
        self._num_judges += 1
        return self._num_judges - 1, field

    def submit(self, items: Sequence[Item]) -> "Future[list[Score]]":
        """Queue `items`, at least one, for judging; the future gives their scores in order."""
        job = _Job(items)
        with self._lock:
            if self._closed is not None:
                raise RuntimeError("the scorer is closed") from self._closed
            self._inbox.append(job)
        self._wake_up()
        return job.future

    def close(self) -> None:
        """End all processes; answers that are still waiting get an exception."""
        with self._lock:
            self._closed = self._closed or RuntimeError("closed while answers were waiting")
        self._wake_up()
        self._thread.join()
        self._wakeup.close()
        self._wakeup_sender.close()

    def _now(self) -> float:
        """Return the time by a clock that stands still while this pool does, as in a suspended process tree."""
        return time.monotonic() - self._standstill

    def _wake_up(self) -> None:
        # A full socket wakes the thread up already.
        with contextlib.suppress(BlockingIOError):
            self._wakeup_sender.send(b"!")

    def _run(self) -> None:
        try:
            while self._closed is None:
                self._admit()
                self._hand_out()
                self._spawn()
                self._wait()
        except BaseException as error:
            self._closed = error
        with self._lock:
            for job in self._open_jobs():
                if not job.future.done():
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
            # Executed answers may take long, so they come first.
            self._batches.extend(_Batch(job, [position]) for position in executed)
            others = [position for position, item in enumerate(job.items) if not item.is_executed]
            # Two batches per worker: few enough to cost little, enough to even out.
            size = min(CAPACITY, -(-len(others) // (2 * self._num_workers)))
            self._batches.extend(_Batch(job, others[i : i + size]) for i in range(0, len(others), size or 1))

    def _hand_out(self) -> None:
        num_busy = sum(worker.batch is not None for worker in self._workers)
        idle = [worker for worker in self._workers if worker.batch is None and worker.is_ready]
        while self._batches and num_busy < self._num_workers:
            needed = self._batches[0].job.last_judge
            for worker in [worker for worker in idle if worker.num_judges <= needed]:
                # It was forked before this scorer was loaded.
                idle.remove(worker)
                self._discard(worker)
            if not idle:
                return
            content = self._batches[0].message()
            while len(content) > self._max_batch_bytes and len(self._batches[0].positions) > 1:
                self._batches.extendleft(reversed(self._batches.popleft().halves()))
                content = self._batches[0].message()
            now = self._now()
            idle.pop().assign(self._batches.popleft(), content, now=now)
            num_busy += 1
            self._check_at = min(self._check_at, now + self._timeout_s)

    def _spawn(self) -> None:
        while self._lacks_workers() and self._now() >= self._spawn_at:
            try:
                worker = _Worker(self._server, num_judges=self._num_judges, settings=self._settings, now=self._now())
            except OSError as error:
                self._retry_later(f"a worker cannot be started: {error}")
            else:
                self._workers.append(worker)

    def _lacks_workers(self) -> bool:
        # A worker that judges its last batch is replaced meanwhile.
        return sum(not worker.is_worn for worker in self._workers) < self._num_workers

    def _retry_later(self, reason: str) -> None:
        """Start no worker for a while.

        Raises RuntimeError if no worker is left and none could be started for `_GIVE_UP_SECONDS`.
        """
        now = self._now()
        if self._failing_since is None:
            _LOG.warning("the scorer tries again: %s", reason)
        if self._failing_since is None or any(worker.is_ready for worker in self._workers):
            self._failing_since = now
        failing = now - self._failing_since
        if failing > _GIVE_UP_SECONDS:
            raise RuntimeError(
                f"the scorer has tried to start workers for {failing:.0f} s: {reason}; free memory, allow more "
                "processes (ulimit -u) and open files (ulimit -n), or give the scorer fewer num_workers"
            )
        self._spawn_at = now + _PAUSE_SECONDS

    def _wait(self) -> None:
        """Wait until a worker says something or is late, or until the next thing is due, and see to it."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        by_fd = {worker.channel.fileno(): worker for worker in self._workers}
        for fd, worker in by_fd.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if worker.is_sending else 0))
        due = [self._spawn_at] if self._lacks_workers() else []
        if any(worker.batch or not worker.is_ready for worker in self._workers):
            due.append(self._check_at)
        patience = max(0.0, min(due) - self._now()) * 1000 + 1 if due else None
        for fd, events in poll.poll(patience):
            if fd not in by_fd:
                self._wakeup.recv(4096)
                continue
            if events & select.POLLOUT:
                by_fd[fd].send()
            if events & ~select.POLLOUT:
                self._attend(by_fd[fd])
        ran_before, self._ran_at = self._ran_at, time.monotonic()
        # Without busy workers the thread may sleep for longer, but then no clock runs.
        self._standstill += max(0.0, self._ran_at - ran_before - _LOOK_SECONDS)
        if self._now() >= self._check_at:
            self._check_limits()

    def _check_limits(self) -> None:
        """End the workers that have exceeded a limit."""
        soonest = _LOOK_SECONDS
        for worker in list(self._workers):
            patience = worker.patience(timeout_s=self._timeout_s, now=self._now())
            if patience <= 0:
                self._end_late(worker)
            else:
                soonest = min(soonest, patience)
        self._check_at = self._now() + soonest

    def _attend(self, worker: _Worker) -> None:
        said = worker.hear()
        if said is None:
            return
        if not worker.is_ready:
            if said and said != READY:
                raise NotConfined(said.decode(errors="replace"))
            worker.is_ready = said == READY
            if said:
                self._failing_since = None
                return
        batch = worker.batch
        if batch is None or said not in (DONE, WORN):
            self._end_dead(worker)
            return
        scores = worker.scores()
        if None in scores and (batch.is_executed or said == DONE):
            self._end_dead(worker)  # It lies.
            return
        worker.batch = None
        self._settle(batch, scores)
        if worker.is_worn or said == WORN:
            self._discard(worker)

    def _settle(self, batch: _Batch, scores: Sequence[Score | None]) -> None:
        """Record the scores of `batch`; answers without a score wait again."""
        pairs = list(zip(batch.positions, scores, strict=True))
        batch.job.record((position, score) for position, score in pairs if score is not None)
        left = [position for position, score in pairs if score is None]
        if left:
            num_attempts = batch.num_attempts if len(left) == len(scores) else 0
            self._batches.appendleft(_Batch(batch.job, left, num_attempts))

    def _discard(self, worker: _Worker) -> None:
        """Kill `worker` without waiting for its end."""
        self._workers.remove(worker)
        # Not left to the server alone: it may be busy loading a scorer.
        os.kill(worker.pid, signal.SIGKILL)
        self._server.release(worker.pid)
        worker.close()

    def _end_late(self, worker: _Worker) -> None:
        """End a worker that has exceeded a limit."""
        if not worker.is_ready:
            self._discard(worker)
            self._retry_later(f"a worker was not ready after {_START_SECONDS} s")
            return
        state = run_state(worker.pid)
        if state in "ZX":
            # It has ended. Without confinement, a process that it forked may hold its channel open.
            self._end_dead(worker)
            return
        if worker.batch is not None:
            # Text that is executed cannot stop its process: the kernel refuses it every signal.
            self._requeue(worker, worker.batch, error=None if state in "Tt" else "timeout")
        self._discard(worker)

    def _end_dead(self, worker: _Worker) -> None:
        """End a worker that has ended, closed its channel or sent an impossible message."""
        if worker.batch is None and worker.is_ready:
            self._discard(worker)
            return
        # One that still runs is killed here, so its wait status tells nothing.
        was_running = not is_exiting(worker.pid)
        ended = self._server.end(worker.pid)
        error = "crash" if was_running else _cause(ended, timeout_s=self._timeout_s)
        if worker.batch is not None:
            self._requeue(worker, worker.batch, error=error)
        elif error is not None:
            raise RuntimeError(f"a scoring worker ended at its start with wait status {ended.status}")
        self._workers.remove(worker)
        worker.close()
        if not worker.is_ready:
            self._retry_later("a worker was killed at its start, perhaps by the kernel's out-of-memory killer")

    def _requeue(self, worker: _Worker, batch: _Batch, *, error: str | None) -> None:
        """Settle `batch`, which `worker` ends before it is done with: the answer that it judged gets `error`.

        Another worker judges the answers that wait behind it. If `error` is None, which means that the worker was
        killed or stopped from outside, it judges the answer itself again, too.

        Raises RuntimeError if workers end by themselves before they judge anything: that is a bug of ours.
        """
        position, started = worker.running()
        scores = worker.scores()
        if batch.is_executed and scores[0] and not scores[0].error:
            scores[0] = None  # It was not judged to the end, whatever the table says.
        has_begun = 0 <= position < len(scores) and scores[position] is None
        if error == "timeout" and not has_begun:
            error = None  # Only a machine that is too busy keeps a worker from reading a batch.
        if error is None:
            self._spawn_at = self._now() + _PAUSE_SECONDS * batch.num_attempts
            self._warn_of_kill()
        is_last_attempt = batch.num_attempts >= _MAX_ATTEMPTS
        if error == "crash" and not has_begun and is_last_attempt and not any(scores):
            raise RuntimeError(f"scoring workers end before they judge anything, {batch.num_attempts} times in a row")
        worker.batch = None
        # The batch itself is too large for a worker's memory, or for the machine's.
        is_too_large = not has_begun and not any(scores) and (error == "memory" or (error is None and is_last_attempt))
        if is_too_large and len(scores) > 1:
            self._batches.extendleft(batch.halves())
            return
        if is_too_large or (has_begun and (error is not None or is_last_attempt)):
            scores[max(position, 0)] = Score(0.0, error or "crash", time.monotonic() - started)
        self._settle(batch, scores)

    def _warn_of_kill(self) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _LOG.warning(
            "a scoring worker was killed or stopped from outside (perhaps by the kernel's out-of-memory killer): its "
            "answer is judged again, and counts as a crash after %d attempts",
            _MAX_ATTEMPTS,
        )


def _started_server() -> ForkServer:
    for pause in _SERVER_PAUSES:
        try:
            return ForkServer()
        except OSError as error:
            _LOG.warning("the scorer tries again: its server cannot be started: %s", error)
            time.sleep(pause)
    try:
        return ForkServer()
    except OSError as error:
        raise RuntimeError(
            f"the scorer cannot start its server: {error}; free memory or allow more processes (ulimit -u)"
        ) from error


def _cause(ended: WorkerExit, *, timeout_s: float) -> str | None:
    """Return the error of the answer at which a worker ended by itself, None if the worker was killed from outside."""
    if os.WIFEXITED(ended.status):
        return "memory" if os.WEXITSTATUS(ended.status) == OUT_OF_MEMORY else "crash"
    number = os.WTERMSIG(ended.status)
    if number == signal.SIGKILL:
        # The kernel sends it too, to a worker that ignores the signal of its CPU limit.
        return "timeout" if ended.cpu_seconds >= cpu_limit(timeout_s) else None
    by_signal: dict[int, str] = {MEMORY_SIGNAL: "memory", signal.SIGXCPU: "timeout"}
    return by_signal.get(number, "crash")
