"""Processes that form one torch.distributed group over gloo and run functions of a module at the same time."""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

# If no rank answers for this long, they wait for each other: the calls of the ranks do not match.
_HANG_SECONDS = 300
# If one rank has failed, the others fail soon too or wait for it without end.
_GRACE_SECONDS = 5


class RankFailed(Exception):
    """A function raised an exception in a rank; the message is the traceback."""


class Ranks:
    """A number of processes, ranks 0 to `world_size` - 1, that have imported one module.

    Functions of the module run in all ranks at once, so they may use collectives. The module joins the process group
    itself. It finds its rank, the world size and a rendezvous file in the variables that torch and verl read.

        with Ranks(2, "support.training_ranks", folder=tmp_path, environment={}) as ranks:
            first, second = ranks.call("update_actor", samples)
    """

    def __init__(self, world_size: int, module: str, *, folder: Path, environment: Mapping[str, str]):
        """Start the processes; the first call waits until they have imported the module.

        Args:
            world_size: The number of processes.
            module: The full name of the module. Only the ranks import it.
            folder: An existing folder for the rendezvous file.
            environment: Variables to set in the ranks before they import the module.
        """
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "DIST_INIT_METHOD": f"file://{folder / f'rendezvous_of_{world_size}'}",
                **environment,
            }
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, module, variables), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def call(self, function: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run a function of the module in all ranks with the same arguments.

        Returns:
            The function's results in the order of the ranks.

        Raises:
            RankFailed: The function raised an exception in a rank. If another rank waits for that one, the processes
                are ended and no further call is possible.
        """
        for connection in self._connections:
            connection.send((function, args, kwargs))
        results: dict[int, Any] = {}
        failure = None
        while len(results) < len(self._connections):
            waiting = {self._connections[rank]: rank for rank in range(len(self._connections)) if rank not in results}
            ready = multiprocessing.connection.wait(waiting, _HANG_SECONDS if failure is None else _GRACE_SECONDS)
            if not ready:
                self.close()
                raise failure or RankFailed(f"ranks {sorted(waiting.values())} wait without end in {function}")
            for connection in ready:
                try:
                    results[waiting[connection]], error = connection.recv()
                except EOFError:
                    self.close()
                    raise RankFailed(f"rank {waiting[connection]} ended in {function}") from None
                if error is not None:
                    failure = failure or RankFailed(error)
        if failure is not None:
            raise failure
        return [results[rank] for rank in range(len(self._connections))]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Connection, module_name: str, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    try:
        module = importlib.import_module(module_name)
    except Exception:
        import_error = traceback.format_exc()
    else:
        import_error = None
    while True:
        try:
            function, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            if import_error:
                connection.send((None, import_error))
            else:
                connection.send((getattr(module, function)(*args, **kwargs), None))
        except Exception:
            connection.send((None, traceback.format_exc()))
