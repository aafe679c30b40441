"""Processes that form torch.distributed groups over gloo and run functions of a module at the same time."""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

# If no rank answers for this long, their collectives do not match and they wait for each other.
_HANG_SECONDS = 600
# After one rank has failed, the others either fail soon or wait for it forever.
_GRACE_SECONDS = 5


class RankFailed(Exception):
    """A function failed in a rank; the message is the traceback."""


class Ranks:
    """All processes of one group, in the order of their ranks."""

    def __init__(self, connections: Sequence[Connection]):
        self._connections = connections

    def call(self, function: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run a function of the module in all ranks with the same arguments.

        Returns:
            The function's results in the order of the ranks.

        Raises:
            RankFailed: The function raised an exception in a rank, or no rank returned from it.
        """
        for connection in self._connections:
            connection.send((function, args, kwargs))
        results: dict[int, Any] = {}
        failure = None
        while len(results) < len(self._connections):
            waiting = {connection: rank for rank, connection in enumerate(self._connections) if rank not in results}
            ready = multiprocessing.connection.wait(waiting, _GRACE_SECONDS if failure else _HANG_SECONDS)
            if not ready:
                # Late answers would be mistaken for those of the next call.
                self._connections = []
                raise failure or RankFailed(f"ranks {sorted(waiting.values())} do not return from {function}")
            for connection in ready:
                try:
                    results[waiting[connection]], error = connection.recv()
                except EOFError:
                    error = results[waiting[connection]] = f"rank {waiting[connection]} ended in {function}"
                if error is not None:
                    failure = failure or RankFailed(error)
        if failure is not None:
            raise failure
        return [results[rank] for rank in range(len(self._connections))]


@contextmanager
def start_worlds(
    world_sizes: Sequence[int], module: str, *, folder: Path, environment: Mapping[str, str]
) -> Iterator[dict[int, Ranks]]:
    """Start groups of processes that have imported one module, and end them after the block.

    The module is imported once, and each rank is a fork of that process. Functions of the module may use collectives.
    They join the process group themselves: rank, world size and a rendezvous file are in the variables that torch and
    verl read.

        with start_worlds([1, 2], "support.training_ranks", folder=tmp_path, environment={}) as worlds:
            first, second = worlds[2].call("update", mini_batches)

    Args:
        world_sizes: The number of ranks of each group, all different.
        module: The module's full name. This process does not import it.
        folder: An existing folder for the rendezvous files.
        environment: Variables to set before the module is imported.

    Yields:
        Each group by its number of ranks. The first call waits until the module is imported.
    """
    context = multiprocessing.get_context("spawn")
    worlds, ranks = {}, []
    for world_size in world_sizes:
        pipes = [context.Pipe() for _ in range(world_size)]
        worlds[world_size] = Ranks([ours for ours, _ in pipes])
        for rank, (_, theirs) in enumerate(pipes):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "DIST_INIT_METHOD": f"file://{folder}/rendezvous_of_{world_size}",
            }
            ranks.append((theirs, variables))
    parent = context.Process(target=_fork_ranks, args=(module, dict(environment), ranks), daemon=True)
    parent.start()
    for theirs, _ in ranks:
        theirs.close()
    try:
        yield worlds
    finally:
        # This kills the ranks too, because they are in its process group.
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.kill()
        parent.join()


def _fork_ranks(
    module_name: str, environment: Mapping[str, str], ranks: Sequence[tuple[Connection, Mapping[str, str]]]
) -> None:
    os.setsid()
    os.environ.update(environment)
    module = importlib.import_module(module_name)
    for number, (connection, variables) in enumerate(ranks):
        if os.fork() == 0:
            # A pipe closes only when the last process that holds it closes it.
            for later, _ in ranks[number + 1 :]:
                later.close()
            os.environ.update(variables)
            _serve(connection, module)
            os._exit(0)
        connection.close()
    for _ in ranks:
        os.wait()


def _serve(connection: Connection, module: ModuleType) -> None:
    with suppress(EOFError):
        while True:
            function, args, kwargs = connection.recv()
            try:
                answer = getattr(module, function)(*args, **kwargs), None
            except Exception:
                answer = None, traceback.format_exc()
            connection.send(answer)
