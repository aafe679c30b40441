"""Data parallelism: several copies of a vLLM engine, each in its own process and on its own GPUs."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from multiprocessing import connection
from typing import Any

from rgtrain.evaluation.engine_interface import Completion, EngineFailed, Prompt, Sampling
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.machine.devices import visible_gpus

_POLL_SECONDS = 0.5


class ReplicatedEngine:
    """Several engines that share the prompts. Of n copies, copy i answers prompts i, i + n, i + 2n and so on."""

    def __init__(self, settings: VllmSettings, *, num_copies: int):
        """Start all copies and wait until they are ready.

        Args:
            settings: The settings of the first copy. The others differ in their seeds.
            num_copies: The number of copies.

        Raises:
            EngineFailed: A copy ended before it was ready.
        """
        self._connections: list[connection.Connection] = []
        self._processes: list[Any] = []
        try:
            for number in range(num_copies):
                self._start(number, settings)
            for copy in self._connections:
                self._receive(copy)
        except BaseException:
            # Otherwise Python would wait at its exit for the copies that are ready.
            self.close()
            raise

    def _start(self, number: int, settings: VllmSettings) -> None:
        context = multiprocessing.get_context("spawn")
        parent_end, child_end = context.Pipe()
        size = settings.tensor_parallel_size
        devices = visible_gpus()[number * size : (number + 1) * size]
        # Copies with the same seed would draw the same random numbers.
        own_settings = dataclasses.replace(settings, seed=settings.seed + number)
        process = context.Process(target=_serve, args=(child_end, own_settings, ",".join(devices)))
        process.start()
        child_end.close()
        self._connections.append(parent_end)
        self._processes.append(process)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Generate completions, as described in `Engine.generate`.

        Args:
            prompts: The prompts, with token ids.
            sampling: The sampling parameters.

        Yields:
            The position of a prompt, and one of its completions.

        Raises:
            EngineFailed: A copy ended. All completions received until then have been yielded.
            EvaluationStopped: The evaluation was asked to stop.
        """
        num_copies = len(self._connections)
        busy = self._connections[: len(prompts)]
        failure: EngineFailed | None = None
        ends_at: float | None = None
        for number, copy in enumerate(busy):
            try:
                copy.send((prompts[number::num_copies], sampling))
            except OSError:
                raise self._failure_of(copy) from None
        while busy:
            # Before it ends, keep the completions that the copies have sent, and those that they send within one poll.
            if ends_at is None and (failure is not None or STOP.is_made):
                ends_at = time.monotonic() + _POLL_SECONDS
            ready = connection.wait(busy, timeout=_POLL_SECONDS if ends_at is None else ends_at - time.monotonic())
            if not ready and ends_at is not None:
                break
            for copy in [one for one in busy if one in ready]:
                try:
                    received = self._receive(copy)
                except EngineFailed as error:
                    failure = failure or error
                    received = None
                if received is None:
                    busy.remove(copy)
                    continue
                position, completion = received
                yield position * num_copies + self._connections.index(copy), completion
        STOP.check()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End all copies. A copy that does not end within 30 s is killed."""
        for copy in self._connections:
            copy.close()
        for process in self._processes:
            process.join(timeout=30)
            process.kill()

    def _receive(self, copy: connection.Connection) -> Any:
        try:
            return copy.recv()
        except (EOFError, ConnectionResetError):
            raise self._failure_of(copy) from None

    def _failure_of(self, copy: connection.Connection) -> EngineFailed:
        number = self._connections.index(copy)
        return EngineFailed(f"copy {number} of the model ended; its output above says why")


def _serve(parent_connection: connection.Connection, settings: VllmSettings, devices: str) -> None:
    """Run one copy: start the engine, then answer prompts until the parent closes the connection."""
    # Ctrl-C reaches the copies too. The parent ends them after it has kept their answers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("_serve must run in a child process started by multiprocessing")
    threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    with closing(VllmEngine(settings)) as engine:
        parent_connection.send(None)
        try:
            while True:
                prompts, sampling = parent_connection.recv()
                for answered in engine.generate(prompts, sampling):
                    parent_connection.send(answered)
                parent_connection.send(None)
        except (EOFError, BrokenPipeError):
            return


def _exit_with_parent(sentinel: int) -> None:
    # A parent that is killed can't end its children.
    connection.wait([sentinel])
    os._exit(1)
