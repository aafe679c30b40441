"""Run trainings side by side in processes: the ones that can start, in order, as many as there are places."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from evidence.training_plan import Training
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import duration_text

LOG = "commands.log"
_POLL_SECONDS = 0.2
# A stopped training ends by itself within `trainer.stop_within_s` and a few seconds for its clean-up.
_GRACE_SECONDS = 20.0
_LAST_LINES = 15
# In the last lines, in lower case, of a training that ran out of memory, of its GPU or of the machine.
_OUT_OF_MEMORY = "out of memory"
# In those of a training whose port was taken between its choice and its use.
_PORT_TAKEN = ("eaddrinuse", "address already in use")
# The trainings that ran out of memory start again so many times with fewer on their GPU.
_MOST_WITH_FEWER = 2
# Equal trainings take different times: of 59 with 11 on an H200, the longest took 1.2 times the mean.
_MARGIN = 1.2


@dataclass(frozen=True)
class Place:
    """A place for one training at a time, with the environment variables of its processes, such as its GPU."""

    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The functions that a scheduler calls for a training.

    Attributes:
        stages: Returns the commands, which run one after the other; called when all prerequisites are finished.
        finish: Called after the last command succeeded, to write the record, with the training, its seconds and the
            largest number of trainings that ran on its GPU at a time.
        is_finished: Returns whether there is nothing left to run.
        run_dir: Returns the folder of the run.
        seconds: Returns the estimated duration.
    """

    stages: Callable[[Training], list[list[str]]]
    finish: Callable[[Training, float, int], None]
    is_finished: Callable[[Training], bool]
    run_dir: Callable[[Training], Path]
    seconds: Callable[[Training], float]


@dataclass
class _Running:
    """A training that runs.

    Attributes:
        training: The training.
        place: Its place.
        left: The commands after the present one.
        log: The open log of its commands.
        lock: The open file that keeps other calls of the program from running it.
        began_at: When it began, on the monotonic clock.
        process: The process of the present command.
        most_on_gpu: The largest number of trainings that ran on its GPU at a time, itself included.
    """

    training: Training
    place: Place
    left: list[list[str]]
    log: IO[str]
    lock: IO[str]
    began_at: float
    process: subprocess.Popen[str]
    most_on_gpu: int = 1


@dataclass(frozen=True)
class _Retry:
    """A failed training that waits to be tried again.

    Attributes:
        training: The training.
        reason: The reason of its failure.
        at_once: Whether it comes before all others. Otherwise it waits until nothing else can start.
    """

    training: Training
    reason: str
    at_once: bool = False


class SideBySide:
    """Runs trainings, and tries those again that fail.

    A failed training is tried once more when nothing else can start, because others may wait for it. One whose port was
    taken starts again at once before that. So does one that ran out of memory beside others, up to two times, and from
    then on fewer run on its GPU. Several calls may share a folder, and each training runs in one of them. They don't
    count each other's trainings on a GPU.

    Args:
        trainings: The trainings in order. A training waits until all its prerequisites are finished.
        work: The functions for a training.
        places: The places; one training runs in each at a time.
        limit_s: Start no training that would end later than this after the start, with a margin of a fifth of its
            estimated duration. None for no limit.
        training_limit_s: End a training that takes longer.
        grace_s: Seconds between SIGTERM and SIGKILL for a training that is stopped.
        say: Prints a line.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        work: Work,
        *,
        places: Sequence[Place],
        limit_s: float | None = None,
        training_limit_s: float = 1800.0,
        grace_s: float = _GRACE_SECONDS,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ):
        self._work = work
        self._left = [training for training in trainings if not work.is_finished(training)]
        self._places = list(places)
        self._free = list(places)
        self._running: list[_Running] = []
        self._began_at = time.monotonic()
        self._ends_at = None if limit_s is None else self._began_at + limit_s
        self._training_limit_s = training_limit_s
        self._grace_s = grace_s
        self._say = say
        self._num_finished = 0
        self._retries: list[_Retry] = []
        # Whether another call runs a training that could start here, and whether this was said.
        self._locked_elsewhere = False
        self._said_waiting = False
        # The names of the trainings that were tried again at once, and when nothing else could start.
        self._tried_at_once: set[str] = set()
        self._tried_last: set[str] = set()
        # How often trainings were tried again with fewer on their GPU.
        self._tried_with_fewer: Counter[str] = Counter()
        # The trainings that failed, with the reason.
        self.failed: dict[str, str] = {}
        # The trainings that were not started, because a prerequisite failed or the time would not suffice.
        self.not_started: dict[str, str] = {}

    def run(self) -> bool:
        """Run until nothing is left that can start.

        Returns:
            Whether no training failed. One that was not started for lack of time is no failure.

        Raises:
            KeyboardInterrupt: The program was interrupted. The running trainings have been stopped.
        """
        try:
            while self._left or self._running or self._retries:
                self._locked_elsewhere = False
                self._start_what_can()
                if not (self._running or self._locked_elsewhere):
                    break
                if not (self._running or self._said_waiting):
                    self._said_waiting = True
                    self._say("waiting for trainings of another call")
                time.sleep(_POLL_SECONDS)
                for running in list(self._running):
                    self._look_after(running)
        finally:
            self._stop_all()
        for training in self._left:
            self.not_started.setdefault(training.name, "a prerequisite was not finished")
        return not self.failed

    def _start_what_can(self) -> None:
        for retry in [retry for retry in self._retries if retry.at_once]:
            self._try_again(retry)
        for training in list(self._left):
            if not self._free:
                return
            waits_for = [other for other in training.prerequisites if not self._work.is_finished(other)]
            if lost := [other.name for other in waits_for if other.name in self.failed | self.not_started]:
                self._left.remove(training)
                self.not_started[training.name] = f"{lost[0]} was not finished"
            elif not waits_for and (lock := self._lock(training)):
                self._left.remove(training)
                if not self._start_in_time(training, self._free[0], lock):
                    seconds = duration_text(_MARGIN * self._work.seconds(training))
                    self.not_started[training.name] = f"each needs up to {seconds}, more than --limit-s leaves"
        for retry in list(self._retries):
            self._try_again(retry)

    def _try_again(self, retry: _Retry) -> None:
        """Start a failed training on the emptiest GPU. Report it if time is short."""
        if not self._free or not (lock := self._lock(retry.training)):
            return
        self._retries.remove(retry)
        if not self._start_in_time(retry.training, min(self._free, key=self._num_running), lock):
            self._fail(retry.training, retry.reason)

    def _start_in_time(self, training: Training, place: Place, lock: IO[str]) -> bool:
        """Start a locked training, unless another call has finished it. Return False if the time would not suffice."""
        if self._work.is_finished(training):
            lock.close()
            return True
        if not self._has_time(training):
            lock.close()
            return False
        self._start(training, place, lock)
        return True

    def _lock(self, training: Training) -> IO[str] | None:
        """Return the open lock file of a training, or None if another call runs it."""
        lock = _locked(self._work.run_dir(training))
        self._locked_elsewhere |= lock is None
        return lock

    def _has_time(self, training: Training) -> bool:
        return self._ends_at is None or time.monotonic() + _MARGIN * self._work.seconds(training) <= self._ends_at

    def _num_running(self, place: Place) -> int:
        """Return the number of trainings on the GPU of a place, or on the CPU without GPUs."""
        return sum(running.place == place for running in self._running)

    def _start(self, training: Training, place: Place, lock: IO[str]) -> None:
        run_dir = self._work.run_dir(training)
        # Remove the files of an earlier try.
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        try:
            commands = self._work.stages(training)
        except ConfigError as error:
            lock.close()
            self._fail(training, str(error))
            return
        self._free.remove(place)
        log = (run_dir / LOG).open("w", encoding="utf-8")
        process = self._spawn(commands[0], place, log, lock)
        self._running.append(_Running(training, place, commands[1:], log, lock, time.monotonic(), process))
        on_gpu = [running for running in self._running if running.place == place]
        for running in on_gpu:
            running.most_on_gpu = max(running.most_on_gpu, len(on_gpu))

    def _spawn(self, command: Sequence[str], place: Place, log: IO[str], lock: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env={**os.environ, **place.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            # Ctrl-C reaches only this program, which then stops its trainings in order.
            start_new_session=True,
            # If this program is killed, its trainings keep their locks.
            pass_fds=(lock.fileno(),),
        )

    def _look_after(self, running: _Running) -> None:
        code = running.process.poll()
        if code is None and time.monotonic() - running.began_at <= self._training_limit_s:
            return
        if code == 0 and running.left:
            running.process = self._spawn(running.left.pop(0), running.place, running.log, running.lock)
            return
        if code is None:
            self._stop([running])
            if running.left or self._record(running):
                self._end(running, failure=f"it took longer than {self._training_limit_s:g} s")
        elif code:
            self._end(running, failure=f"exit code {code}\n{self._last_lines(running.training)}")
        elif reason := self._record(running):
            self._end(running, failure=f"it ended, but has no record ({reason})")

    def _record(self, running: _Running) -> str:
        """Write the record of a training and free its place.

        Until the record exists, the training counts as running, so that an interrupt does not lose it.

        Args:
            running: A training whose last program has ended.

        Returns:
            The reason if it cannot have a record. It then still has its place.
        """
        seconds = time.monotonic() - running.began_at
        try:
            self._work.finish(running.training, seconds, running.most_on_gpu)
        # An incomplete folder of a run must not stop the other trainings.
        except (ConfigError, OSError, ValueError, LookupError) as error:
            return f"{type(error).__name__}: {error}"
        self._end(running)
        self._num_finished += 1
        self._say(f"{self._status()} | {running.training.name}: done in {duration_text(seconds)}")
        return ""

    def _end(self, running: _Running, *, failure: str = "") -> None:
        """Free the place of a training, and try it again if it failed."""
        running.log.close()
        # A process that outlives the training may still have the file open.
        fcntl.flock(running.lock, fcntl.LOCK_UN)
        running.lock.close()
        self._running.remove(running)
        self._free.append(running.place)
        if failure:
            self._fail_or_try_again(running, failure)

    def _fail_or_try_again(self, running: _Running, reason: str) -> None:
        training, text = running.training, reason.lower()
        name = training.name
        num_beside, was_tried = running.most_on_gpu - 1, self._tried_with_fewer[name]
        if _OUT_OF_MEMORY in text and num_beside and was_tried < _MOST_WITH_FEWER:
            self._tried_with_fewer[name] += 1
            self._retries.append(_Retry(training, reason, at_once=True))
            num_left = self._keep_places(running.place, num_beside)
            plan = f"out of memory beside up to {num_beside} others, starts again; {num_left} at a time on its GPU"
        elif name not in self._tried_at_once and any(sign in text for sign in _PORT_TAKEN):
            self._tried_at_once.add(name)
            self._retries.append(_Retry(training, reason, at_once=True))
            plan = "its port was taken, starts again"
        elif name not in self._tried_last:
            self._tried_last.add(name)
            self._retries.append(_Retry(training, reason))
            plan = f"{reason.splitlines()[0]}, to be tried again when nothing else can start"
        else:
            self._fail(training, reason)
            return
        self._say(f"{self._status()} | {name}: {plan}")

    def _keep_places(self, place: Place, num_kept: int) -> int:
        """Give up free places of a GPU until at most a number is left.

        Returns:
            The number that is left.
        """
        while self._places.count(place) > num_kept and place in self._free:
            self._free.remove(place)
            self._places.remove(place)
        return self._places.count(place)

    def _fail(self, training: Training, reason: str) -> None:
        self.failed[training.name] = reason
        self._say(f"{self._status()} | {training.name}: FAILED, {reason.splitlines()[0]}")

    def _status(self) -> str:
        waiting_trainings = [*self._left, *(retry.training for retry in self._retries)]
        waiting = sum(map(self._work.seconds, waiting_trainings))
        begun = sum(
            max(0.0, self._work.seconds(running.training) - (time.monotonic() - running.began_at))
            for running in self._running
        )
        elapsed, left = time.monotonic() - self._began_at, (waiting + begun) / len(self._places)
        return (
            f"{duration_text(elapsed)} | {self._num_finished} done, {len(self.failed)} failed, "
            f"{len(self._running)} running, {len(waiting_trainings)} left, about {duration_text(left)}"
        )

    def _last_lines(self, training: Training) -> str:
        log = self._work.run_dir(training) / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])

    def _stop_all(self) -> None:
        if self._running:
            self._say(f"stopping {len(self._running)} trainings; the same command continues with the missing ones")
            self._stop(self._running)
            for running in list(self._running):
                # The last program of some has written everything, and was only ending.
                if running.left or self._record(running):
                    self._end(running)

    def _stop(self, all_running: Sequence[_Running]) -> None:
        """End processes by SIGTERM, and those that do not end in time, with their process groups, by SIGKILL."""
        for running in all_running:
            with suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGTERM)
        ends_at = time.monotonic() + self._grace_s
        for running in all_running:
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(max(0.0, ends_at - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait()


def _locked(run_dir: Path) -> IO[str] | None:
    """Lock the folder of a run.

    The lock file is beside the folder, because the folder is removed before each try. The lock is released when it is
    unlocked, or when this process and the training have ended.

    Args:
        run_dir: The folder, which may not exist.

    Returns:
        The open lock file; None if another process has locked it.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = run_dir.with_name(f"{run_dir.name}.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def in_order(trainings: Sequence[Training]) -> list[Training]:
    """Return trainings and all their prerequisites, each once, with prerequisites before the trainings that need them.

    Args:
        trainings: The trainings of one or several parts. Parts may share trainings.

    Returns:
        The trainings in the given order, as far as the prerequisites allow.

    Raises:
        ConfigError: Two different trainings have the same name.
    """
    found: dict[str, Training] = {}

    def add(training: Training) -> None:
        if training.name in found:
            if found[training.name] != training:
                raise ConfigError(f"two different trainings are called {training.name}; give one another arm")
            return
        for other in training.prerequisites:
            add(other)
        found[training.name] = training

    for training in trainings:
        add(training)
    return list(found.values())


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM, so that a scheduler that ends this program stops its trainings.

    Shells start background programs with SIGINT ignored, and Python then keeps ignoring it. Only the first signal
    interrupts: `timeout` sends two, and stopping ends in a bounded time.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, interrupt)


def print_failures(failed: Mapping[str, str], not_started: Mapping[str, str]) -> None:
    """Print the trainings that failed, with the last lines of their logs, and those that were not started."""
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    for reason in dict.fromkeys(not_started.values()):
        names = [name for name, other in not_started.items() if other == reason]
        print(f"{len(names)} trainings were not started, such as {names[0]}, because {reason}", file=sys.stderr)
