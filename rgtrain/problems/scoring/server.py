"""The fork server, from which workers are forked.

It holds Reasoning Gym and all scorers in memory, and never reads answers. A fork takes milliseconds, a new interpreter
takes seconds. So a killed worker is replaced at once, and an answer that may have side effects gets its own process.

Run as `python -m rgtrain.problems.scoring.server FD PLUGIN...`. Requests and replies are pickles on the socket FD;
forking.py is the client.
"""

import errno
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.problems.entries import load_entry
from rgtrain.problems.own_rewards import OwnReward
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring.entry_field import only_field_read
from rgtrain.problems.scoring.forking import MAX_MESSAGE_BYTES, WorkerExit
from rgtrain.problems.scoring.judges import find_judge
from rgtrain.problems.scoring.result_table import ResultTable
from rgtrain.problems.scoring.scoring_worker import Judge, work

# Modules that sympy imports inside scorers. They are imported here because a confined worker cannot open files.
_PRELOADED = (
    "encodings.unicode_escape",
    "sympy.assumptions.wrapper",
    "sympy.combinatorics",
    "sympy.integrals.heurisch",
    "sympy.integrals.manualintegrate",
    "sympy.integrals.risch",
    "sympy.parsing.sympy_parser",
    "sympy.physics.matrices",
    "sympy.physics.units",
    "sympy.sets.setexpr",
    "sympy.tensor.array.array_derivatives",
)


class _Server:
    def __init__(self, control: socket.socket, *, failure: ConfigError | None = None):
        self._control = control
        # The reply to every request if this process cannot judge.
        self._failure = failure
        self._judges: dict[int, Judge | OwnReward] = {}
        self._workers: set[int] = set()
        self._dying: set[int] = set()

    def serve(self) -> None:
        while True:
            content, fds, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 2)
            if not content:
                return
            self._dying = {pid for pid in self._dying if not os.waitpid(pid, os.WNOHANG)[0]}
            request, arguments = pickle.loads(content)
            reply = self._failure or getattr(self, request)(*fds, **arguments)
            self._control.send(pickle.dumps(reply))

    def prepare(self, number: int, dataset: str, params: str) -> str | ConfigError | None:
        """Load the scorer of `dataset` with `params` as judge `number`.

        Returns:
            The only field of an entry that it reads, None if it reads several, or the error if the dataset refuses the
            parameters.
        """
        try:
            judge = find_judge(dataset, load_entry(params))
        except ConfigError as error:
            return error
        self._judges[number] = judge
        return only_field_read(judge)

    def prepare_reward(
        self, number: int, name: str, args: dict[str, Any], parts: tuple[str, ...]
    ) -> ConfigError | None:
        """Import an own reward function as judge `number`. Return the error if that fails."""
        try:
            self._judges[number] = OwnReward(name, args, parts)
        except ConfigError as error:
            return error
        return None

    def fork(self, *fds: int, **settings: Any) -> int | OSError:
        """Start a worker that has all judges loaded so far.

        Args:
            fds: File descriptors of its channel and of the memory of its table.
            settings: The keyword arguments of `work`.

        Returns:
            Its process id, or the OSError if the machine is out of processes, memory or file descriptors.
        """
        # Keep garbage collection in workers from touching existing objects, which would copy their pages.
        gc.collect(0)
        gc.freeze()
        try:
            if len(fds) != 2:
                return OSError(errno.EMFILE, "the scoring server has too few file descriptors for another worker")
            pid = os.fork()
            if pid == 0:
                self._become_worker(*fds, settings)
        except OSError as error:
            return error
        finally:
            for fd in fds:
                os.close(fd)
        self._workers.add(pid)
        return pid

    def _become_worker(self, channel_fd: int, table_fd: int, settings: dict[str, Any]) -> None:
        try:
            with socket.socket(fileno=channel_fd) as channel:
                work(channel, ResultTable(table_fd), self._judges, **settings)
        finally:
            os._exit(0)

    def end(self, pid: int) -> WorkerExit:
        """Kill a worker if it still runs, and return how it exited."""
        os.kill(pid, signal.SIGKILL)
        self._workers.remove(pid)
        _, status, usage = os.wait4(pid, 0)
        return WorkerExit(status, usage.ru_utime + usage.ru_stime)

    def release(self, pid: int) -> None:
        """Kill a worker without waiting for it, because the kernel may take a second to free its memory."""
        os.kill(pid, signal.SIGKILL)
        self._workers.remove(pid)
        self._dying.add(pid)

    def end_all(self) -> None:
        for pid in list(self._workers):
            self.release(pid)
        for pid in self._dying:
            os.waitpid(pid, 0)


def main() -> None:
    """Serve until the other end of the socket closes."""
    # Schedulers and closed terminals signal all processes of a job. The parent decides when this process exits.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for module in _PRELOADED:
        importlib.import_module(module)
    failure = None
    try:
        # Before workers are forked, because a confined worker cannot import a module.
        import_plugins(sys.argv[2:])
    except ConfigError as error:
        failure = ConfigError(f"in the process that judges answers, {error}")
    server = _Server(socket.socket(fileno=int(sys.argv[1])), failure=failure)
    try:
        server.serve()
    finally:
        server.end_all()


if __name__ == "__main__":
    main()
