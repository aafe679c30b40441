"""Make problems in a child process if the dataset's generator runs programs.

For every problem, codeio runs a program from its data file. Such a program may write files, start threads, change the
environment or never end. The child process has a temporary folder, no credentials in its environment and no output. It
forks once per problem, with limits on time and memory. So a program affects neither the calling process nor the next
problem.

If the kernel supports seccomp, the forks cannot use the network or start programs. Their confinement is less strict
than for scoring workers, because 41 of codeio's 3,002 programs import modules, open files or start threads. With full
confinement these would make different problems, most of them empty.
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
from rgtrain.machine.environment import confined_environment
from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.plugins import imported_plugins

# tests/problems/test_isolated_problems.py fails if another dataset runs programs.
RUN_PROGRAMS = frozenset({"codeio"})

# The child exits as soon as its connection closes, unless it is suspended.
_EXIT_TIMEOUT_SECONDS = 10


class ProblemNotMade(ConfigError):
    """The generator of a dataset raised, crashed, or exceeded its time or memory while making a problem."""


def make_entry(dataset: str, *, params: Mapping[str, Any], seed: int, size: int, index: int) -> dict[str, Any]:
    """Make one entry in a child process, which is started if none is running.

    Args:
        dataset: The registered name.
        params: Its Reasoning Gym parameters.
        seed: The base seed of the source, see `ProblemSource`.
        size: The size of the source.
        index: The index of the problem in the source.

    Returns:
        The same entry as if it were made in this process.

    Raises:
        ProblemNotMade: The generator failed on this problem.
        RuntimeError: The child process failed twice in a row.
    """
    request = {"dataset": dataset, "params": dump_entry(dict(params)), "seed": seed, "size": size, "index": index}
    with _lock:
        reply = _ask(json.dumps(request).encode() + b"\n")
    if "entry" in reply:
        return load_entry(reply["entry"])
    raise ProblemNotMade(
        f"dataset {dataset!r} cannot make problem {index} of seed {seed} ({reply['error']}); "
        "choose another seed or size, or remove the dataset"
    )


def clean_environment(folder: str) -> dict[str, str]:
    """Return the environment of a process that makes problems in `folder`, without credentials."""
    return confined_environment() | {"HOME": folder, "TMPDIR": folder}


def _ask(line: bytes) -> dict[str, Any]:
    global _running
    failure: OSError | None = None
    # If the child was killed from outside, start another one for the same problem.
    for _ in range(2):
        try:
            _running = _running or _Child()
            return _running.ask(line)
        except BaseException as error:
            # Close the connection: the next request must not receive the reply to an interrupted one.
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
        plugins = list(imported_plugins())
        code = f"from rgtrain.problems.problem_maker import serve; serve({theirs.fileno()}, plugins={plugins})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code],
                pass_fds=[theirs.fileno()],
                env=clean_environment(self._folder),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C must reach only the calling process, which may have work to finish.
                process_group=0,
            )
        self._socket, self._replies = ours, ours.makefile("rb")

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send a request and return the reply. Raises OSError if the child has exited."""
        # Do not buffer: a forked process would write the buffer again when it closes the connection.
        self._socket.sendall(line)
        reply = self._replies.readline()
        if not reply.endswith(b"\n"):
            raise ConnectionResetError(f"it exited with status {self._process.wait()}")
        return json.loads(reply)

    def drop(self) -> None:
        """Close this process's end of the connection."""
        self._replies.close()
        self._socket.close()

    def close(self) -> None:
        """Stop the child and remove its folder."""
        # Closing alone does not end the connection if a forked process also holds the socket.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.drop()
        try:
            self._process.wait(timeout=_EXIT_TIMEOUT_SECONDS)
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
    # Another thread may have held the lock, and two processes must not share a connection.
    global _lock, _running
    _lock = threading.Lock()
    if _running is not None:
        _running.drop()
        _running = None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close)
