"""Suspended or killed processes and a lack of memory or processes do not change the score of an answer."""

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rgtrain.problems import DatasetSpec, Score, Scorer
from rgtrain.problems.mixture import ProblemSource
from rgtrain.problems.scoring import MAX_ANSWER_CHARS, forking, pool, scoring_worker
from rgtrain.problems.scoring.server import _Server

FOREVER = "exec('while True: pass')"
# An answer that uses 0.4 s of CPU time.
BUSY = "exec('import time\\nend = time.process_time() + 0.4\\nwhile time.process_time() < end: pass')"
NICENESS = 3


def entry_of(dataset: str) -> dict[str, Any]:
    return ProblemSource(DatasetSpec(dataset), seed=0, size=1)[0].entry


def descendants(pid: int) -> set[int]:
    """Return `pid` and all its descendants that still run."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    found, new = set(), {pid}
    while new := {child for child, parent in parents.items() if parent in new}:
        found |= new
    return found


def send_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def long_answers(letter: str, number: int) -> list[str]:
    """Return distinct answers of the maximum length. Pickle would store equal ones only once."""
    return [str(index).rjust(MAX_ANSWER_CHARS, letter) for index in range(number)]


def busy_workers(scorer: Scorer) -> list[int]:
    """Return the ids of the workers that are judging an answer."""
    return [worker.pid for worker in list(scorer._pool._workers) if worker.batch is not None]


OWNER = f"""
import os, sys
os.nice({NICENESS})
from rgtrain.problems import DatasetSpec, Scorer
from rgtrain.problems.mixture import ProblemSource
entry = ProblemSource(DatasetSpec("n_queens"), seed=0, size=1)[0].entry
with Scorer(num_workers=1, timeout_s=1) as scorer:
    for answer in sys.stdin:
        print("begun", flush=True)
        print(scorer.score(answer.strip(), entry).error, flush=True)
"""


@pytest.fixture(scope="module")
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process with a higher niceness that judges answers from its input and prints "begun" and the error of each."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        process.stdin.write("1\n")
        assert process.stdout.readline() == "begun\n"
        process.stdout.readline()
        yield process
        process.kill()


def test_suspension_of_the_process_tree_does_not_count_as_time(owner):
    owner.stdin.write(BUSY + "\n")
    assert owner.stdout.readline() == "begun\n"
    tree = {owner.pid, *descendants(owner.pid)}
    send_all(tree, signal.SIGSTOP)
    # Longer than the time limits of an answer and of a blocked worker.
    time.sleep(3.5)
    send_all(tree, signal.SIGCONT)
    assert "timeout" not in owner.stdout.readline()


def test_scoring_processes_inherit_the_niceness_of_their_parent(owner):
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in descendants(owner.pid)} == {NICENESS}


@pytest.fixture(scope="module")
def single() -> Iterator[Scorer]:
    with Scorer(num_workers=1, timeout_s=1, memory_mb=64) as scorer:
        yield scorer


def test_a_stopped_worker_and_36_megabytes_of_answers_do_not_stop_scoring(single):
    entry = entry_of("chain_sum")
    assert single.score(entry["answer"], entry).accuracy == 1
    [stopped] = single._pool._workers
    os.kill(stopped.pid, signal.SIGSTOP)
    long = [(answer, entry) for answer in long_answers("x", 360)]
    scores = single.score_many([(entry["answer"], entry), *long, (entry["answer"], entry)])
    assert {score.error for score in scores} == {None}
    assert [scores[0].accuracy, scores[-1].accuracy] == [1, 1]


def test_a_stopped_worker_is_replaced_and_its_answer_judged(single):
    future = single.submit(BUSY, entry_of("n_queens"))
    while not (busy := busy_workers(single)):
        time.sleep(0.01)
    os.kill(busy[0], signal.SIGSTOP)
    assert future.result(timeout=60).error is None


@pytest.mark.parametrize("letter", ["x", "\U0001f469"])
def test_512_answers_of_100000_characters_fit_into_little_memory(single, letter):
    entry = entry_of("spell_backward")
    scores = single.score_many((answer, entry) for answer in long_answers(letter, 512))
    assert {score.error for score in scores} == {None}


def test_an_answer_that_does_not_fit_into_memory_is_an_error():
    entry = entry_of("spell_backward")
    with Scorer(num_workers=1, timeout_s=5, memory_mb=1) as scorer:
        scores = scorer.score_many((answer, entry) for answer in ["x", "\U0001f469" * MAX_ANSWER_CHARS, "x"])
    assert [score.error for score in scores] == [None, "memory", None]


def kill_busy_workers(scorer: Scorer, *, until: "threading.Event", most: int) -> set[int]:
    killed: set[int] = set()
    while not until.is_set() and len(killed) < most:
        for pid in set(busy_workers(scorer)) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    return killed


def test_an_answer_whose_worker_is_killed_from_outside_is_judged_again(single):
    future = single.submit(BUSY, entry_of("n_queens"))
    assert len(kill_busy_workers(single, until=threading.Event(), most=1)) == 1
    assert future.result(timeout=60).error is None


@pytest.mark.parametrize(("dataset", "answer"), [("n_queens", FOREVER), ("coin_flip", "1e100000000")])
def test_an_answer_whose_workers_are_repeatedly_killed_is_a_crash(single, dataset, answer):
    entry, done = entry_of(dataset), threading.Event()
    future = single.submit(answer, entry)
    future.add_done_callback(lambda _: done.set())
    killed = kill_busy_workers(single, until=done, most=99)
    assert future.result(timeout=60).error == "crash"
    assert len(killed) == pool._MAX_ATTEMPTS
    assert single.score("1", entry).error is None


@pytest.mark.parametrize(
    ("status", "cpu_seconds", "error"),
    [
        (signal.SIGKILL, 1.0, None),
        (signal.SIGKILL, scoring_worker.cpu_limit(5), "timeout"),
        (signal.SIGXCPU, scoring_worker.cpu_limit(5), "timeout"),
        (signal.SIGSYS, 1.0, "memory"),
        (signal.SIGSEGV, 1.0, "crash"),
        (scoring_worker.OUT_OF_MEMORY << 8, 1.0, "memory"),
        (0, 1.0, "crash"),
    ],
)
def test_a_kill_is_external_only_if_no_limit_explains_it(status, cpu_seconds, error):
    assert pool._exit_error(forking.WorkerExit(int(status), cpu_seconds), timeout_s=5) == error


def test_a_server_without_free_descriptors_is_asked_again(caplog):
    entry = entry_of("n_queens")
    with Scorer(num_workers=1) as scorer:
        assert scorer.score("exit()", entry).error == "exception: SystemExit"
        server = scorer._pool._server._process.pid
        limits = resource.prlimit(server, resource.RLIMIT_NOFILE)
        resource.prlimit(server, resource.RLIMIT_NOFILE, (4, limits[1]))
        # Each answer uses up a worker, and the server can start no other.
        futures = [scorer.submit("exit()", entry) for _ in range(3)]
        while "the scorer tries again because a worker cannot be started" not in caplog.text:
            time.sleep(0.01)
        resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
        assert [future.result(timeout=60).error for future in futures] == ["exception: SystemExit"] * 3


def test_a_failed_fork_is_reported_by_the_server_and_leaves_no_descriptor_open(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError(errno.EAGAIN, "no process left")))
    ours, theirs = socket.socketpair()
    with ours, socket.socket(fileno=os.dup(theirs.fileno())) as control:
        reply = _Server(control).fork(theirs.detach(), os.open(os.devnull, os.O_RDWR))
        assert isinstance(reply, BlockingIOError)
    assert isinstance(reply, OSError) and reply.errno == errno.EAGAIN


def test_if_no_worker_can_be_started_the_cause_is_reported(monkeypatch):
    def refuse(*_: Any, **__: Any) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(pool, "_GIVE_UP_SECONDS", 0.3)
    monkeypatch.setattr(forking.ForkServer, "fork", refuse)
    with pytest.raises(
        RuntimeError, match="tried to start workers for .* temporarily unavailable\\); free memory, allow"
    ):
        Scorer(num_workers=2).__enter__()


def test_a_failed_start_is_retried(monkeypatch):
    fork, failures = forking.ForkServer.fork, [OSError(errno.ENOMEM, "Cannot allocate memory")] * 3

    def fail_at_first(*arguments: Any, **settings: Any) -> int:
        if failures:
            raise failures.pop()
        return fork(*arguments, **settings)

    monkeypatch.setattr(forking.ForkServer, "fork", fail_at_first)
    entry = entry_of("chain_sum")
    with Scorer(num_workers=2) as scorer:
        assert scorer.score(entry["answer"], entry)._replace(seconds=0.0) == Score(1.0)


def test_fewer_workers_than_requested_are_enough(monkeypatch):
    fork = forking.ForkServer.fork

    def fail_beside_another(server: forking.ForkServer, *arguments: Any, **settings: Any) -> int:
        if descendants(server._process.pid):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return fork(server, *arguments, **settings)

    monkeypatch.setattr(pool, "_GIVE_UP_SECONDS", 1)
    monkeypatch.setattr(forking.ForkServer, "fork", fail_beside_another)
    entry = entry_of("chain_sum")
    with Scorer(num_workers=3) as scorer:
        for _ in range(3):
            assert scorer.score(entry["answer"], entry).accuracy == 1
            time.sleep(0.6)


@pytest.mark.parametrize("num_failures", [1, 99])
def test_the_start_of_the_server_is_retried_before_the_cause_is_reported(monkeypatch, num_failures):
    popen, failures = subprocess.Popen, [OSError(errno.EAGAIN, "no process left")] * num_failures

    def fail_at_first(*arguments: Any, **settings: Any) -> "subprocess.Popen[bytes]":
        if failures:
            raise failures.pop()
        return popen(*arguments, **settings)

    monkeypatch.setattr(pool, "_SERVER_RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(subprocess, "Popen", fail_at_first)
    if num_failures == 1:
        with Scorer(num_workers=1) as scorer:
            assert scorer.score(None, entry_of("chain_sum")).error is None
    else:
        with pytest.raises(
            RuntimeError, match="the scorer cannot start its server \\(.* no process left\\); free memory"
        ):
            Scorer(num_workers=1).__enter__()


def test_answers_that_no_worker_can_read_stop_the_scorer_with_an_error(monkeypatch):
    garbage = b"no pickle"
    monkeypatch.setattr(pool, "message", lambda _: len(garbage).to_bytes(8, "little") + garbage)
    with Scorer(num_workers=1) as scorer:
        future = scorer.submit("1", entry_of("chain_sum"))
        with pytest.raises(RuntimeError, match="scoring workers exited before they judged anything, 3 times in a row"):
            future.result(timeout=60)
