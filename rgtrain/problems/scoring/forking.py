"""The scorer's side of the server: starting it, and what it can be asked for."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
from typing import Any

from rgtrain.errors import ConfigError

MAX_MESSAGE_BYTES = 1 << 16
# All that a worker gets to see of the environment: no keys, no names of this machine. The last is leftovers.RUN_ID.
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "RGTRAIN_RUN_ID")
# Threads can't be started once confined.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class ForkServer:
    """A running server. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Sequenced packets: a message is received whole or not at all.
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ONE_THREAD
        environment["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED", "0")
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "rgtrain.problems.scoring.server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for whom it serves, which may have something to finish.
                process_group=0,
            )

    def prepare(self, number: int, *, dataset: str, params: str) -> str | None:
        """Have the scorer of `dataset` with `params` (a dumped entry) ready as judge `number`. Raises ConfigError.

        Returns the only field of an entry that it reads, None where it reads several.
        """
        reply = self._ask("prepare", number=number, dataset=dataset, params=params)
        if isinstance(reply, ConfigError):
            raise reply
        return reply

    def fork(self, channel: socket.socket, table_fd: int, **settings: Any) -> int:
        """A new worker on the other ends of `channel` and the table; its process id. `settings` are those of `work`."""
        return self._ask("fork", fds=(channel.fileno(), table_fd), **settings)

    def end(self, pid: int) -> int:
        """Kill worker `pid`, unless it is dead already; its wait status, as of os.waitpid."""
        return self._ask("end", pid=pid)

    def release(self, pid: int) -> None:
        """Kill worker `pid` without waiting for its end."""
        self._ask("release", pid=pid)

    def close(self) -> None:
        """End the server and all workers."""
        # Closing is not enough where a process forked from this one holds the socket too.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait()

    def _ask(self, request: str, *, fds: tuple[int, ...] = (), **arguments: Any) -> Any:
        with self._lock:
            try:
                socket.send_fds(self._control, [pickle.dumps((request, arguments))], fds)
                reply = self._control.recv(MAX_MESSAGE_BYTES)
            except OSError as error:
                raise RuntimeError(f"the scoring server is gone: {error}") from error
        if not reply:
            raise RuntimeError(f"the scoring server ended with status {self._process.wait()}; its error stands above")
        return pickle.loads(reply)
