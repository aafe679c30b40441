"""The client of the fork server, which starts the server and sends it requests."""

import contextlib
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rgtrain.errors import ConfigError
from rgtrain.machine.environment import confined_environment
from rgtrain.problems.plugins import imported_plugins

MAX_MESSAGE_BYTES = 1 << 16


class WorkerExit(NamedTuple):
    """The wait status of a worker that has exited, as `os.waitpid` returns it, and the CPU time that it used."""

    status: int
    cpu_seconds: float


class ForkServer:
    """A running fork server. Its methods are thread-safe.

    Its processes inherit the niceness of the process that starts it.

    Raises:
        OSError: The server cannot be started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Sequenced packets keep the boundaries of messages.
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as unused, theirs:
            unused.callback(self._control.close)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "ignore", "-m", "rgtrain.problems.scoring.server", str(theirs.fileno())),
                    *imported_plugins(),
                ],
                pass_fds=[theirs.fileno()],
                env=confined_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C must reach only the calling process, which may have work to finish.
                process_group=0,
            )
            unused.pop_all()

    def prepare(self, number: int, *, dataset: str, params: str) -> str | None:
        """Load the scorer of `dataset` as judge `number`.

        Args:
            number: A number that identifies the judge.
            dataset: The dataset.
            params: Its Reasoning Gym parameters, as `dump_entry` serialises them.

        Returns:
            The only field of an entry that the scorer reads, or None if it reads several.

        Raises:
            ConfigError: The dataset refuses the parameters.
        """
        return self._ask("prepare", number=number, dataset=dataset, params=params)

    def prepare_reward(self, number: int, *, name: str, args: Mapping[str, Any], parts: Sequence[str]) -> None:
        """Import an own reward function as judge `number`.

        Args:
            number: A number that identifies the judge.
            name: `pkg://package.module.function`.
            args: Its arguments.
            parts: The names of the parts that it returns.

        Raises:
            ConfigError: The function cannot be imported.
        """
        self._ask("prepare_reward", number=number, name=name, args=args, parts=parts)

    def fork(self, channel: socket.socket, table_fd: int, **settings: Any) -> int:
        """Start a worker that serves the other end of `channel` and writes scores to the table.

        Args:
            channel: The worker's end of its channel.
            table_fd: File descriptor of the memory of its result table.
            settings: The keyword arguments of `work`.

        Returns:
            The worker's process id.

        Raises:
            OSError: The machine is out of processes, memory or file descriptors.
        """
        return self._ask("fork", fds=(channel.fileno(), table_fd), **settings)

    def end(self, pid: int) -> WorkerExit:
        """Kill worker `pid` if it still runs, wait for it and return how it exited."""
        return self._ask("end", pid=pid)

    def release(self, pid: int) -> None:
        """Kill worker `pid` without waiting for it."""
        self._ask("release", pid=pid)

    def close(self) -> None:
        """Stop the server and all workers."""
        # Closing alone does not end the connection if a forked process also holds the socket.
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
                # Suppress the OSError as a cause, because a run reports the first cause.
                raise RuntimeError(f"the scoring server ended unexpectedly: {error.strerror}") from None
        if not content:
            raise RuntimeError(
                f"the scoring server ended unexpectedly with status {self._process.wait()}; see its error above"
            )
        reply = pickle.loads(content)
        if isinstance(reply, ConfigError | OSError):
            raise reply
        return reply
