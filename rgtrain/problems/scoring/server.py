"""The process that workers are forked from: it has Reasoning Gym and all scorers in memory, and reads no answers.

A fork costs milliseconds where a new interpreter costs seconds, so that a killed worker is replaced at once and an
answer that could leave something behind gets a process of its own. Run as `python -m rgtrain.problems.scoring.server
FD`; requests and replies are pickles on the socket FD (see forking.py).
"""

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
from rgtrain.problems.mixture import DatasetSpec, create_dataset
from rgtrain.problems.scoring.entry_field import only_field_read
from rgtrain.problems.scoring.forking import MAX_MESSAGE_BYTES
from rgtrain.problems.scoring.result_table import ResultTable
from rgtrain.problems.scoring.worker import Judge, work

# What sympy imports when first asked to, inside a scorer: a worker can't open files any more.
_IMPORTED_LATE = (
    "encodings.unicode_escape",
    "sympy.assumptions.wrapper",
    "sympy.combinatorics",
    "sympy.integrals.heurisch",
    "sympy.integrals.manualintegrate",
    "sympy.integrals.risch",
    "sympy.physics.matrices",
    "sympy.physics.units",
    "sympy.sets.setexpr",
    "sympy.tensor.array.array_derivatives",
)


class _Server:
    def __init__(self, control: socket.socket):
        self._control = control
        self._judges: dict[int, Judge] = {}
        self._workers: set[int] = set()
        self._dying: set[int] = set()

    def serve(self) -> None:
        while True:
            content, fds, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 2)
            if not content:
                return
            self._dying = {pid for pid in self._dying if not os.waitpid(pid, os.WNOHANG)[0]}
            request, arguments = pickle.loads(content)
            reply = getattr(self, request)(*fds, **arguments)
            self._control.send(pickle.dumps(reply))

    def prepare(self, number: int, dataset: str, params: str) -> str | ConfigError | None:
        """Have the scorer of `dataset` with `params` ready as judge `number`; the only field of an entry that it reads.

        None where it reads several; an error where there is no such scorer.
        """
        try:
            made = create_dataset(DatasetSpec(dataset, params=load_entry(params)), seed=0, size=1)
        except ConfigError as error:
            return error
        self._judges[number] = made.score_answer
        return only_field_read(made.score_answer)

    def fork(self, channel_fd: int, table_fd: int, **settings: Any) -> int:
        """A new worker with all judges there are so far; its process id."""
        # What is there now is never collected: workers would copy the pages it lies on only to look at it.
        gc.collect(0)
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            self._become_worker(channel_fd, table_fd, settings)
        self._workers.add(pid)
        os.close(channel_fd)
        os.close(table_fd)
        return pid

    def _become_worker(self, channel_fd: int, table_fd: int, settings: dict[str, Any]) -> None:
        try:
            with socket.socket(fileno=channel_fd) as channel:
                work(channel, ResultTable(table_fd), self._judges, **settings)
        finally:
            os._exit(0)

    def end(self, pid: int) -> int:
        """Kill a worker, unless it is dead already; its wait status."""
        os.kill(pid, signal.SIGKILL)
        self._workers.remove(pid)
        return os.waitpid(pid, 0)[1]

    def release(self, pid: int) -> None:
        """Kill a worker without waiting: to free what it has used may take the kernel a second."""
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
    # Sent to all processes of a job; the one that is served says when it ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    try:
        server.serve()
    finally:
        server.end_all()


if __name__ == "__main__":
    main()
