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
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.problems.entries import dump_entry, load_entry

# tests/problems/test_isolated_problems.py measures all datasets and fails if another one runs programs.
RUN_PROGRAMS = frozenset({"codeio"})

# The whole environment of the child: no keys, no names of this machine. The last one is orphan_cleanup.RUN_ID.
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "RGTRAIN_RUN_ID")
# The child ends at once if its connection closes, unless it is suspended.
_PATIENCE_SECONDS = 10


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
        code = f"from rgtrain.problems.problem_maker import serve; serve({theirs.fileno()})"
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
