"""Problems of datasets whose generators run programs, made in a child process.

codeio draws a program from its data file for every problem and runs it. Such a program may write files, start threads,
change the environment or never end. The child process has a temporary folder, no credentials in its environment and
no output. It forks once per problem, with limits on time and memory, so a program leaves nothing behind: neither in
the process that asks for the problem nor in the next problem.

If the kernel has seccomp, it keeps the forks from the network and from starting programs. They are not confined as
tightly as the scorer's workers: 41 of codeio's 3,002 programs import modules, open files or start threads while they
run. Confined, these would make other problems, most of them empty.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rgtrain.errors import ConfigError
from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.scoring.confinement import NotConfined, keep_from_reaching_out, limit_resources

if TYPE_CHECKING:
    from rgtrain.problems.mixture import ProblemSource

# tests/problems/test_isolated_problems.py measures all datasets and fails if another one runs programs.
RUN_PROGRAMS = frozenset({"codeio"})

# The whole environment of the child: no keys, no names of this machine. The last one is orphan_cleanup.RUN_ID.
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "RGTRAIN_RUN_ID")
# Limits of one problem. The slowest of codeio's 3,002 programs takes 2.3 s of CPU time.
_CPU_SECONDS = 60
_WALL_SECONDS = 300
_MEMORY_BYTES = 2 << 30
# More than the longest entry, so that a program that prints into the result cannot fill the memory.
_MAX_RESULT_BYTES = 64 << 20
_SHOWN_FOLDER = "/home/program"
# Sources that the child keeps: each holds its dataset's data file.
_MAX_SOURCES = 16
# The child ends at once if its connection closes, unless it is suspended.
_PATIENCE_SECONDS = 10
# Modules that many programs import. A fork inherits them instead of importing them for each problem.
_PRELOADED = (
    *("numpy.fft", "numpy.linalg", "numpy.polynomial", "numpy.random", "queue", "secrets", "statistics"),
    *("sympy.combinatorics", "sympy.physics.units"),
)


class ProblemNotMade(ConfigError):
    """A dataset's generator did not make a problem: it raised, crashed, or used up its time or memory."""


def make_entry(dataset: str, *, params: Mapping[str, Any], seed: int, size: int, index: int) -> dict[str, Any]:
    """Make one entry in this process's child, which is started if there is none.

    Args:
        dataset: The registered name.
        params: Its Reasoning Gym parameters.
        seed: The first seed of the source, see `ProblemSource`.
        size: The size of the source.
        index: Which of its problems.

    Returns:
        The entry, equal to one that was made in this process.

    Raises:
        ProblemNotMade: The generator failed on this problem.
        RuntimeError: The child itself failed twice in a row.
    """
    request = {"dataset": dataset, "params": dump_entry(dict(params)), "seed": seed, "size": size, "index": index}
    with _lock:
        reply = _ask(json.dumps(request).encode() + b"\n")
    if "entry" in reply:
        return load_entry(reply["entry"])
    raise ProblemNotMade(
        f"dataset {dataset!r} cannot make problem {index} of seed {seed}: {reply['error']}; "
        "choose another seed or size, or leave the dataset out"
    )


def clean_environment(folder: str) -> dict[str, str]:
    """The environment of a process that makes problems in `folder`: without keys, and with this process's hash seed."""
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        **{name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
    }


def _ask(line: bytes) -> dict[str, Any]:
    global _running
    failure: OSError | None = None
    # If someone killed the child, another one makes the same problem.
    for _ in range(2):
        try:
            _running = _running or _Child()
            return _running.ask(line)
        except BaseException as error:
            # The reply to an interrupted request must not become the reply to the next one.
            _close()
            if not isinstance(error, OSError):
                raise
            failure = error
    raise RuntimeError(f"the process that makes problems failed twice: {failure}") from failure


class _Child:
    """The child process and the connection to it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="rgtrain-problems-")
        ours, theirs = socket.socketpair()
        code = f"from rgtrain.problems.isolated_problems import _serve; _serve({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code],
                pass_fds=[theirs.fileno()],
                env=clean_environment(self._folder),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for the process that asks for problems: it may have something to finish.
                process_group=0,
            )
        self._socket, self._replies = ours, ours.makefile("rb")

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises OSError if the child is gone."""
        # Without a buffer, which a fork would write again when it drops the connection.
        self._socket.sendall(line)
        reply = self._replies.readline()
        if not reply.endswith(b"\n"):
            raise ConnectionResetError(f"it ended with status {self._process.wait()}")
        return json.loads(reply)

    def drop(self) -> None:
        """Close this process's end of the connection."""
        self._replies.close()
        self._socket.close()

    def close(self) -> None:
        """End the child and remove its folder."""
        # Closing is not enough if a process that was forked from this one holds the socket too.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.drop()
        try:
            self._process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


_lock = threading.Lock()
_running: _Child | None = None


def _close() -> None:
    global _running
    if _running is not None:
        _running.close()
        _running = None


def _after_fork() -> None:
    # Another thread may have held the lock, and two processes must not share one connection.
    global _lock, _running
    _lock = threading.Lock()
    if _running is not None:
        _running.drop()
        _running = None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close)


def _serve(fd: int) -> None:
    """Make problems until the other end of the socket `fd` closes."""
    from rgtrain.problems.mixture import DatasetSpec, ProblemSource

    # SIGTERM is sent to all processes of a job. The one that is served decides when this one ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = Path.cwd()
    for module in _PRELOADED:
        importlib.import_module(module)
    sources: dict[tuple[Any, ...], ProblemSource] = {}
    with socket.socket(fileno=fd) as connection, connection.makefile("rwb") as stream:
        for line in stream:
            request = json.loads(line)
            index = request.pop("index")
            key = tuple(request.values())
            if key not in sources:
                if len(sources) == _MAX_SOURCES:
                    del sources[next(iter(sources))]
                spec = DatasetSpec(request["dataset"], params=load_entry(request["params"]))
                sources[key] = ProblemSource(spec, seed=request["seed"], size=request["size"])
                # The collector of a fork would copy the pages of all these objects only to look at them.
                gc.freeze()
            reply = _made_in_a_fork(sources[key], index, connection)
            if reply is None:
                break
            stream.write(reply)
            stream.flush()
    shutil.rmtree(folder, ignore_errors=True)


def _made_in_a_fork(
    source: "ProblemSource", index: int, connection: socket.socket, *, num_tries: int = 3
) -> bytes | None:
    """The reply with problem `index`, as a line; None if the connection was closed meanwhile."""
    reading, writing = os.pipe()
    folder = tempfile.mkdtemp(dir=Path.cwd())
    pid = os.fork()
    if pid == 0:
        _become_maker(source, index, folder, writing)
    os.close(writing)
    # Here too, or the group may not be there yet when it is killed.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    waiter = select.poll()
    waiter.register(reading, select.POLLIN)
    waiter.register(connection, select.POLLIN)
    reply, waited, before, failure = bytearray(), 0.0, time.monotonic(), None
    try:
        while not reply.endswith(b"\n"):
            ready = [fd for fd, _ in waiter.poll(1000)]
            now = time.monotonic()
            # A process that was suspended, as schedulers do, has not waited all that time.
            waited += min(now - before, 2.0)
            before = now
            if connection.fileno() in ready:
                return None
            part = os.read(reading, 1 << 20) if reading in ready else None
            reply += part or b""
            if part == b"":
                break
            if waited > _WALL_SECONDS or len(reply) > _MAX_RESULT_BYTES:
                failure = f"it takes over {_WALL_SECONDS} s or {_MAX_RESULT_BYTES >> 20} MB"
                break
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)
    if failure is None and reply.endswith(b"\n"):
        return bytes(reply)
    number = os.waitstatus_to_exitcode(status)
    if failure is None and number == -signal.SIGKILL and num_tries > 1:
        # Another process has killed it, or the kernel because the machine is out of memory.
        return _made_in_a_fork(source, index, connection, num_tries=num_tries - 1)
    if failure is None and number == -signal.SIGXCPU:
        failure = f"it takes over {_CPU_SECONDS} s of processor time"
    return json.dumps({"error": failure or f"its process ended with status {number}"}).encode() + b"\n"


def _become_maker(source: "ProblemSource", index: int, folder: str, writing: int) -> NoReturn:
    """Make the problem in this process, write the reply and end."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        devnull = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(devnull, fd)
        os.closerange(3, writing)
        os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir(folder)
        os.environ |= {"HOME": folder, "TMPDIR": folder}
        tempfile.tempdir = None
        limit_resources(memory_bytes=_MEMORY_BYTES, cpu_seconds=_CPU_SECONDS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_RESULT_BYTES,) * 2)
        with contextlib.suppress(NotConfined):
            keep_from_reaching_out()
        try:
            # Programs may answer with the folder's name, which is another one each time.
            reply = {"entry": dump_entry(dict(source.make_here(index).entry)).replace(folder, _SHOWN_FOLDER)}
        except BaseException as error:  # A program may also exit or raise KeyboardInterrupt.
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        line = memoryview(json.dumps(reply).encode() + b"\n")
        while line:
            line = line[os.write(writing, line) :]
    finally:
        os._exit(0)
