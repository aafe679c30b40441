"""The client of the fork server: starts the server and sends it requests."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from rgtrain.errors import ConfigError

MAX_MESSAGE_BYTES = 1 << 16
# The whole environment of a worker: no keys, no names of this machine. The last one is orphan_cleanup.RUN_ID.
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "RGTRAIN_RUN_ID")
# A confined process cannot start threads.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class WorkerExit(NamedTuple):
    """How a worker ended: its wait status, as of `os.waitpid`, and the CPU time that it had used."""

    status: int
    cpu_seconds: float


class ForkServer:
    """A running fork server. Its methods may be called from any thread.

    Its processes inherit the niceness of the process that starts it. Raises OSError if the server cannot be started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Sequenced packets: a message is received whole or not at all.
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ONE_THREAD
        environment["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED", "0")
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
        with contextlib.ExitStack() as unused, theirs:
            unused.callback(self._control.close)
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "rgtrain.problems.scoring.server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for the process that is served: it may have something to finish.
                process_group=0,
            )
            unused.pop_all()

    def prepare(self, number: int, *, dataset: str, params: str) -> str | None:
        """Load the scorer of `dataset` with `params` (a dumped entry) as judge `number`.

        Returns:
            The only field of an entry that the scorer reads, or None if it reads several.

        Raises:
            ConfigError: There is no such scorer.
        """
        return self._ask("prepare", number=number, dataset=dataset, params=params)

    def fork(self, channel: socket.socket, table_fd: int, **settings: Any) -> int:
        """Start a worker that serves the other end of `channel` and writes into the table.

        Args:
            channel: The worker's end of its channel.
            table_fd: The memory of its result table.
            settings: The keyword arguments of `work`.

        Returns:
            The worker's process id.

        Raises:
            OSError: The machine has no process, memory or descriptor left.
        """
        return self._ask("fork", fds=(channel.fileno(), table_fd), **settings)

    def end(self, pid: int) -> WorkerExit:
        """Kill worker `pid` if it still runs, wait for its end and return how it ended."""
        return self._ask("end", pid=pid)

    def release(self, pid: int) -> None:
        """Kill worker `pid` without waiting for its end."""
        self._ask("release", pid=pid)

    def close(self) -> None:
        """End the server and all workers."""
        # Closing is not enough if a process that was forked from this one holds the socket too.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait()

    def _ask(self, request: str, *, fds: tuple[int, ...] = (), **arguments: Any) -> Any:
        with self._lock:
            try:
                socket.send_fds(self._control, [pickle.dumps((request, arguments))], fds)
                content = self._control.recv(MAX_MESSAGE_BYTES)
            except OSError as error:
                # Without the OSError as its cause: a run reports the first cause, which would name no server.
                raise RuntimeError(f"the scoring server ended unexpectedly: {error.strerror}") from None
        if not content:
            raise RuntimeError(
                f"the scoring server ended unexpectedly, with status {self._process.wait()}; its error stands above"
            )
        reply = pickle.loads(content)
        if isinstance(reply, ConfigError | OSError):
            raise reply
        return reply
