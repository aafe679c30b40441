"""The pool of confined workers. One thread assigns batches, enforces time limits and replaces workers that exit.

Time limits: an answer may use `timeout_s` seconds of CPU time, so a suspended process tree, a debugger or a busy
machine does not use up its time. Two limits apply to wall-clock time, because a blocked worker uses no CPU time. The
limit is `BLOCKED_FACTOR` times `timeout_s` for a blocked worker, and `WALL_FACTOR` times `timeout_s` for one that waits
for a CPU or a disk. Time in which the pool itself was suspended does not count.

Workers that exit: if a worker crashes, hangs or runs out of memory, its answer scores 0 with that error. If a worker is
killed or stopped from outside, for example by the kernel's out-of-memory killer, another worker judges the answer
again, up to `_MAX_ATTEMPTS` times.
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
from rgtrain.problems.scoring.result_table import CAPACITY, MAX_VALUES, ResultTable
from rgtrain.problems.scoring.score import Score
from rgtrain.problems.scoring.scoring_worker import DONE, OUT_OF_MEMORY, READY, RECYCLE, cpu_limit, message

_LOG = logging.getLogger(__name__)

BLOCKED_FACTOR = 3
WALL_FACTOR = 20
_MAX_ATTEMPTS = 3
# Time limit for the start of a worker, which usually takes milliseconds.
_START_SECONDS = 60
# CPU time limit for reading a batch, if it is higher than the limit for an answer.
_READ_SECONDS = 1.0
# Interval of checks while workers are busy. After a longer gap, the pool itself was suspended.
_CHECK_SECONDS = 0.25
# If no worker can be started, the pool retries at this interval and gives up after this time.
_RETRY_SECONDS = 0.2
_GIVE_UP_SECONDS = 30
_SERVER_RETRY_SECONDS = (0.5, 2.0, 8.0)
# A worker needs up to six times the size of a batch: in chunks, joined, and as text with four bytes per character.
_MAX_BATCH_BYTES = 4 << 20
_MEMORY_PER_BATCH_BYTE = 32


class Item(NamedTuple):
    """An answer to judge, or a call of a reward function.

    Attributes:
        judge: Number of the judge.
        answer: Untrusted text of a model, or the completions that a reward function gets.
        entry: The fields of the entry that the judge reads; None for a reward function.
        is_executed: Whether the judge may run the answer as code. Such an answer gets a separate process.
        num_values: The number of values that a reward function returns, or 0 if the item is no call of one. It is equal
            for all items of a call of `submit`.
    """

    judge: int
    answer: Any
    entry: Mapping[str, Any] | None
    is_executed: bool
    num_values: int = 0


class _Job:
    """The items of a call of `submit`, and the future of their scores."""

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.last_judge = max(item.judge for item in items)
        self.future: Future[list[Score]] = Future()
        # Mark the future as running, so that it cannot be cancelled before the pool sets its result.
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
    """A worker process with its channel, table and batch. It measures the time spent on an answer.

    Raises:
        OSError: The machine is out of processes, memory or file descriptors.
    """

    def __init__(self, server: ForkServer, *, num_judges: int, settings: Mapping[str, Any], now: float):
        self.num_judges = num_judges
        self.is_ready = False
        self.needs_recycling = False
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
        self._progress = self._current_progress()
        self._cpu_at, self._wall_at = cpu_seconds(self.pid), now

    def _current_progress(self) -> tuple[int, int, float]:
        """Return a value that changes whenever the worker makes progress: unsent bytes and the current answer."""
        return (len(self._unsent), *self.running())

    def assign(self, batch: _Batch, content: bytes, *, now: float) -> None:
        """Start sending a batch.

        Args:
            batch: The batch.
            content: Its serialised form.
            now: The time by the clock of the pool.
        """
        self.batch = batch
        batch.num_attempts += 1
        self.needs_recycling = batch.is_executed
        self.assigned_at = time.monotonic()
        self.table.clear()
        self._unsent = memoryview(content)
        self.send()
        self._restart_clocks(now)

    @property
    def is_sending(self) -> bool:
        return bool(self._unsent)

    def send(self) -> None:
        """Send as much of the batch as possible without blocking."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.channel.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            # The worker has exited. The next read from its channel detects this.
            self._unsent = memoryview(b"")

    def receive(self) -> bytes | None:
        """Return a message of the worker, empty bytes if it closed its channel, or None if there is no message."""
        try:
            return self.channel.recv(4096)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def running(self) -> tuple[int, float]:
        """Return the position of the answer that is being judged (-1 if none) and its start time."""
        if self.batch is None:
            return -1, 0.0
        if self.batch.is_executed:
            # Do not read the table, because executed text could have changed it.
            return 0, self.assigned_at
        position, started = self.table.running()
        return int(position), max(self.assigned_at, started)

    def time_left(self, *, timeout_s: float, now: float) -> float:
        """Return the time until this worker can exceed a limit.

        Args:
            timeout_s: CPU seconds allowed per answer.
            now: The time by the clock of the pool.

        Returns:
            Seconds; 0 or less if it has exceeded a limit.
        """
        if not self.is_ready:
            return _START_SECONDS - (now - self._wall_at)
        if self.batch is None:
            return float("inf")
        if self._current_progress() != self._progress:
            self._restart_clocks(now)
        wall = now - self._wall_at
        is_judging = not self._unsent and self._progress[1] >= 0
        limit = timeout_s if is_judging else max(timeout_s, _READ_SECONDS)
        cpu_left = limit - (cpu_seconds(self.pid) - self._cpu_at)
        wall_left = BLOCKED_FACTOR * limit - wall
        # R and D mean that it waits for a CPU or a disk, for example for swapped memory. An answer cannot cause this.
        if wall_left <= 0 and run_state(self.pid) in "RD":
            wall_left = min(limit, WALL_FACTOR * limit - wall)
        return min(cpu_left, wall_left)

    def scores(self) -> list[Score | None]:
        """Return the scores of its batch in order, with None for unjudged answers; empty without a batch."""
        if self.batch is None:
            return []
        num_answers, elapsed_s = len(self.batch.positions), time.monotonic() - self.assigned_at
        if num_values := self.batch.job.items[0].num_values:
            return self.table.reward_scores(num_answers, num_values, elapsed_s=elapsed_s)
        return self.table.scores(num_answers, elapsed_s=elapsed_s)

    def close(self) -> None:
        self.channel.close()
        self.table.close()


class Pool:
    """A pool of confined processes. `submit` is thread-safe and returns futures.

    Args:
        num_workers: Number of processes.
        timeout_s: CPU seconds allowed per answer.
        memory_mb: Memory in MiB allowed per answer.
        allow_unconfined: Judge even if the kernel refuses confinement.

    Raises:
        NotConfined: The kernel refuses confinement and `allow_unconfined` is not set.
        RuntimeError: The machine cannot start the processes.
    """

    def __init__(self, *, num_workers: int, timeout_s: float, memory_mb: int, allow_unconfined: bool):
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._max_batch_bytes = min(_MAX_BATCH_BYTES, (memory_mb << 20) // _MEMORY_PER_BATCH_BYTE)
        self._settings = {"timeout_s": timeout_s, "memory_mb": memory_mb, "allow_unconfined": allow_unconfined}
        self._num_judges = 0
        self._inbox: collections.deque[_Job] = collections.deque()
        self._batches: collections.deque[_Batch] = collections.deque()
        self._workers: list[_Worker] = []
        # Seconds in which the thread of the pool was suspended, and the time of its last run.
        self._suspended_s = 0.0
        self._ran_at = time.monotonic()
        # Times by `_now`: of the next check of limits, of the next start of a worker, and of the first failed start.
        self._check_at = 0.0
        self._spawn_at = 0.0
        self._failing_since: float | None = None
        self._has_warned = False
        self._lock = threading.Lock()
        self._closed: BaseException | None = None
        self._wakeup, self._wakeup_sender = socket.socketpair()
        self._wakeup_sender.setblocking(False)
        self._server = _start_server()
        try:
            while self._is_starting():
                self._spawn()
                self._wait()
        except BaseException:
            self._shut_down()
            raise
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def _is_starting(self) -> bool:
        # If the machine cannot start all workers, a smaller number is enough.
        num_ready = sum(worker.is_ready for worker in self._workers)
        return num_ready < self._num_workers and not (num_ready and self._failing_since is not None)

    def prepare(self, *, dataset: str, params: str) -> tuple[int, str | None]:
        """Load the scorer of a dataset.

        Args:
            dataset: The dataset.
            params: Its Reasoning Gym parameters, as `dump_entry` serialises them.

        Returns:
            The number of the judge, and the only field of an entry that it reads, or None if it reads several.

        Raises:
            ConfigError: The dataset refuses the parameters.
        """
        field = self._server.prepare(self._num_judges, dataset=dataset, params=params)
        self._num_judges += 1
        return self._num_judges - 1, field

    def prepare_reward(self, name: str, *, args: Mapping[str, Any], parts: Sequence[str]) -> int:
        """Import an own reward function.

        Args:
            name: `pkg://package.module.function`.
            args: Its arguments.
            parts: The names of the parts that it returns.

        Returns:
            The number of its judge.

        Raises:
            ConfigError: The scoring processes cannot import it.
        """
        self._server.prepare_reward(self._num_judges, name=name, args=args, parts=parts)
        self._num_judges += 1
        return self._num_judges - 1

    def submit(self, items: Sequence[Item]) -> "Future[list[Score]]":
        """Queue answers for judging.

        Args:
            items: At least one answer.

        Returns:
            A future of their scores in order.

        Raises:
            RuntimeError: The pool is closed.
        """
        job = _Job(items)
        with self._lock:
            if self._closed is not None:
                raise RuntimeError("the scorer is closed") from self._closed
            self._inbox.append(job)
        self._wake_up()
        return job.future

    def close(self) -> None:
        """Stop all processes. The futures of unfinished answers raise an exception."""
        with self._lock:
            self._closed = self._closed or RuntimeError("closed while answers were waiting")
        self._wake_up()
        self._thread.join()
        self._wakeup.close()
        self._wakeup_sender.close()

    def _now(self) -> float:
        """Return the time of a clock that stops while this pool is suspended."""
        return time.monotonic() - self._suspended_s

    def _wake_up(self) -> None:
        # If the socket is full, the thread wakes up anyway.
        with contextlib.suppress(BlockingIOError):
            self._wakeup_sender.send(b"!")

    def _run(self) -> None:
        try:
            while self._closed is None:
                self._make_batches()
                self._assign_batches()
                self._spawn()
                self._wait()
        except BaseException as error:
            self._closed = error
        with self._lock:
            for job in self._unfinished_jobs():
                if not job.future.done():
                    job.future.set_exception(self._closed)
        self._shut_down()

    def _unfinished_jobs(self) -> Iterator[_Job]:
        batches = [*self._batches, *(worker.batch for worker in self._workers if worker.batch)]
        jobs = [*self._inbox, *(batch.job for batch in batches)]
        yield from {id(job): job for job in jobs}.values()

    def _shut_down(self) -> None:
        for worker in self._workers:
            worker.close()
        self._server.close()

    def _make_batches(self) -> None:
        while self._inbox:
            job = self._inbox.popleft()
            executed = [position for position, item in enumerate(job.items) if item.is_executed]
            # Start executed answers first, because they may take long.
            self._batches.extend(_Batch(job, [position]) for position in executed)
            others = [position for position, item in enumerate(job.items) if not item.is_executed]
            # Make two batches per worker, as a compromise between overhead and load balance.
            size = min(
                CAPACITY, -(-len(others) // (2 * self._num_workers)), MAX_VALUES // max(1, job.items[0].num_values)
            )
            self._batches.extend(_Batch(job, others[i : i + size]) for i in range(0, len(others), size or 1))

    def _assign_batches(self) -> None:
        num_busy = sum(worker.batch is not None for worker in self._workers)
        idle = [worker for worker in self._workers if worker.batch is None and worker.is_ready]
        while self._batches and num_busy < self._num_workers:
            needed = self._batches[0].job.last_judge
            for worker in [worker for worker in idle if worker.num_judges <= needed]:
                # The worker was forked before this scorer was loaded.
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
                self._retry_later(f"a worker cannot be started ({error})")
            else:
                self._workers.append(worker)

    def _lacks_workers(self) -> bool:
        # Start the replacement while a worker judges its last batch.
        return sum(not worker.needs_recycling for worker in self._workers) < self._num_workers

    def _retry_later(self, reason: str) -> None:
        """Delay the start of the next worker.

        Raises:
            RuntimeError: No worker is left, and none could be started for `_GIVE_UP_SECONDS`.
        """
        now = self._now()
        if self._failing_since is None:
            _LOG.warning("the scorer tries again because %s", reason)
        if self._failing_since is None or any(worker.is_ready for worker in self._workers):
            self._failing_since = now
        failing = now - self._failing_since
        if failing > _GIVE_UP_SECONDS:
            raise RuntimeError(
                f"the scorer tried to start workers for {failing:.0f} s, but {reason}; free memory, allow more "
                "processes (ulimit -u) and open files (ulimit -n), or reduce the scorer's num_workers"
            )
        self._spawn_at = now + _RETRY_SECONDS

    def _wait(self) -> None:
        """Wait for the next message or deadline, and handle it."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        by_fd = {worker.channel.fileno(): worker for worker in self._workers}
        for fd, worker in by_fd.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if worker.is_sending else 0))
        due = [self._spawn_at] if self._lacks_workers() else []
        if any(worker.batch or not worker.is_ready for worker in self._workers):
            due.append(self._check_at)
        timeout_ms = max(0.0, min(due) - self._now()) * 1000 + 1 if due else None
        for fd, events in poll.poll(timeout_ms):
            if fd not in by_fd:
                self._wakeup.recv(4096)
                continue
            if events & select.POLLOUT:
                by_fd[fd].send()
            if events & ~select.POLLOUT:
                self._handle_message(by_fd[fd])
        ran_before, self._ran_at = self._ran_at, time.monotonic()
        # Without busy workers the thread may sleep longer, but then no time is measured.
        self._suspended_s += max(0.0, self._ran_at - ran_before - _CHECK_SECONDS)
        if self._now() >= self._check_at:
            self._check_limits()

    def _check_limits(self) -> None:
        """Kill the workers that have exceeded a limit."""
        next_check = _CHECK_SECONDS
        for worker in list(self._workers):
            time_left = worker.time_left(timeout_s=self._timeout_s, now=self._now())
            if time_left <= 0:
                self._kill_overdue(worker)
            else:
                next_check = min(next_check, time_left)
        self._check_at = self._now() + next_check

    def _handle_message(self, worker: _Worker) -> None:
        received = worker.receive()
        if received is None:
            return
        if not worker.is_ready:
            if received and received != READY:
                raise NotConfined(received.decode(errors="replace"))
            worker.is_ready = received == READY
            if received:
                self._failing_since = None
                return
        batch = worker.batch
        if batch is None or received not in (DONE, RECYCLE):
            self._reap(worker)
            return
        scores = worker.scores()
        if None in scores and (batch.is_executed or received == DONE):
            self._reap(worker)  # The message contradicts the table.
            return
        worker.batch = None
        self._record_scores(batch, scores)
        if worker.needs_recycling or received == RECYCLE:
            self._discard(worker)

    def _record_scores(self, batch: _Batch, scores: Sequence[Score | None]) -> None:
        """Record the scores of `batch`, and queue answers without a score again."""
        pairs = list(zip(batch.positions, scores, strict=True))
        batch.job.record((position, score) for position, score in pairs if score is not None)
        left = [position for position, score in pairs if score is None]
        if left:
            num_attempts = batch.num_attempts if len(left) == len(scores) else 0
            self._batches.appendleft(_Batch(batch.job, left, num_attempts))

    def _discard(self, worker: _Worker) -> None:
        """Kill `worker` without waiting for it."""
        self._workers.remove(worker)
        # Kill it here too, because the server may be busy loading a scorer.
        os.kill(worker.pid, signal.SIGKILL)
        self._server.release(worker.pid)
        worker.close()

    def _kill_overdue(self, worker: _Worker) -> None:
        """Kill a worker that has exceeded a limit."""
        if not worker.is_ready:
            self._discard(worker)
            self._retry_later(f"a worker was not ready after {_START_SECONDS} s")
            return
        state = run_state(worker.pid)
        if state in "ZX":
            # It has exited. Without confinement, a process that it forked may keep its channel open.
            self._reap(worker)
            return
        if worker.batch is not None:
            # Executed text cannot stop its process itself, because it is not allowed to send signals.
            self._requeue(worker, worker.batch, error=None if state in "Tt" else "timeout")
        self._discard(worker)

    def _reap(self, worker: _Worker) -> None:
        """Remove a worker that has exited, closed its channel or sent an invalid message."""
        if worker.batch is None and worker.is_ready:
            self._discard(worker)
            return
        # If it still runs, `end` kills it, so its wait status has no information.
        was_running = not is_exiting(worker.pid)
        worker_exit = self._server.end(worker.pid)
        error = "crash" if was_running else _exit_error(worker_exit, timeout_s=self._timeout_s)
        if worker.batch is not None:
            self._requeue(worker, worker.batch, error=error)
        elif error is not None:
            raise RuntimeError(f"a scoring worker exited during its start with wait status {worker_exit.status}")
        self._workers.remove(worker)
        worker.close()
        if not worker.is_ready:
            self._retry_later("a worker was killed during its start, perhaps by the kernel's out-of-memory killer")

    def _requeue(self, worker: _Worker, batch: _Batch, *, error: str | None) -> None:
        """Record the scores of an unfinished batch and queue the rest for other workers.

        Args:
            worker: The worker, which has exited or will be killed.
            batch: Its batch.
            error: The error of the answer that it was judging. If the worker was killed or stopped from outside, this
                is None, and another worker judges the answer again.

        Raises:
            RuntimeError: Workers repeatedly exit before they judge anything, which is a bug of this package.
        """
        position, started = worker.running()
        scores = worker.scores()
        if batch.is_executed and scores[0] and not scores[0].error:
            scores[0] = None  # Judging did not finish, so executed text must have written this score.
        has_begun = 0 <= position < len(scores) and scores[position] is None
        if error == "timeout" and not has_begun:
            error = None  # Reading a batch times out only on an overloaded machine.
        if error is None:
            self._spawn_at = self._now() + _RETRY_SECONDS * batch.num_attempts
            self._warn_about_kill()
        is_last_attempt = batch.num_attempts >= _MAX_ATTEMPTS
        if error == "crash" and not has_begun and is_last_attempt and not any(scores):
            raise RuntimeError(
                f"scoring workers exited before they judged anything, {batch.num_attempts} times in a row"
            )
        worker.batch = None
        # The batch does not fit into the memory of a worker or of the machine.
        is_too_large = not has_begun and not any(scores) and (error == "memory" or (error is None and is_last_attempt))
        if is_too_large and len(scores) > 1:
            self._batches.extendleft(batch.halves())
            return
        if is_too_large or (has_begun and (error is not None or is_last_attempt)):
            scores[max(position, 0)] = Score(0.0, error or "crash", time.monotonic() - started)
        self._record_scores(batch, scores)

    def _warn_about_kill(self) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _LOG.warning(
            "a scoring worker was killed or stopped from outside, perhaps by the kernel's out-of-memory killer; its "
            "answer is judged again, and counts as a crash after %d attempts",
            _MAX_ATTEMPTS,
        )


def _start_server() -> ForkServer:
    for pause in _SERVER_RETRY_SECONDS:
        try:
            return ForkServer()
        except OSError as error:
            _LOG.warning("the scorer tries again because its server cannot be started (%s)", error)
            time.sleep(pause)
    try:
        return ForkServer()
    except OSError as error:
        raise RuntimeError(
            f"the scorer cannot start its server ({error}); free memory or allow more processes (ulimit -u)"
        ) from error


def _exit_error(worker_exit: WorkerExit, *, timeout_s: float) -> str | None:
    """Return the error of the answer that a worker was judging, or None if the worker was killed from outside."""
    if os.WIFEXITED(worker_exit.status):
        return "memory" if os.WEXITSTATUS(worker_exit.status) == OUT_OF_MEMORY else "crash"
    number = os.WTERMSIG(worker_exit.status)
    if number == signal.SIGKILL:
        # The kernel also sends SIGKILL if a worker ignores SIGXCPU at its CPU limit.
        return "timeout" if worker_exit.cpu_seconds >= cpu_limit(timeout_s) else None
    by_signal: dict[int, str] = {MEMORY_SIGNAL: "memory", signal.SIGXCPU: "timeout"}
    return by_signal.get(number, "crash")
