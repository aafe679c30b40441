"""Data parallel: several copies of a vLLM engine, each in a process of its own on GPUs of its own."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Any

from rgtrain.evaluation.engine_interface import Completion, EngineFailed, Prompt, Sampling
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.machine.devices import visible_gpus

_LOOK_EVERY_SECONDS = 0.5


class ReplicatedEngine:
    """`num_copies` engines that share the prompts; copy i takes every `num_copies`-th from the i-th on."""

    def __init__(self, settings: VllmSettings, *, num_copies: int):
        """Returns when all copies are ready. Raises EngineFailed if one of them ends instead."""
        self._connections: list[connection.Connection] = []
        self._processes: list[Any] = []
        try:
            for number in range(num_copies):
                self._start(number, settings)
            for ours in self._connections:
                self._receive(ours)
        except BaseException:
            # Python would wait at its end for those that are ready.
            self.close()
            raise

    def _start(self, number: int, settings: VllmSettings) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        size = settings.tensor_parallel_size
        devices = visible_gpus()[number * size : (number + 1) * size]
        # Copies that draw the same random numbers would not be independent of each other.
        own_settings = dataclasses.replace(settings, seed=settings.seed + number)
        process = context.Process(target=_serve, args=(theirs, own_settings, ",".join(devices)))
        process.start()
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """See Engine. Raises EngineFailed if a copy ends; what the copies have answered by then has been yielded."""
        num_copies = len(self._connections)
        waiting = self._connections[: len(prompts)]
        for number, ours in enumerate(waiting):
            try:
                ours.send((prompts[number::num_copies], sampling))
            except OSError:
                raise self._ended(ours) from None
        while waiting:
            STOP.check()
            ready = connection.wait(waiting, timeout=_LOOK_EVERY_SECONDS)
            for ours in [one for one in waiting if one in ready]:
                received = self._receive(ours)
                if received is None:
                    waiting.remove(ours)
                    continue
                position, completion = received
                yield position * num_copies + self._connections.index(ours), completion

    def close(self) -> None:
        """See Engine."""
        for ours in self._connections:
            ours.close()
        for process in self._processes:
            process.join(timeout=30)
            process.kill()

    def _receive(self, ours: connection.Connection) -> Any:
        try:
            return ours.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended(ours) from None

    def _ended(self, ours: connection.Connection) -> EngineFailed:
        number = self._connections.index(ours)
        return EngineFailed(f"copy {number} of the model ended; its output above says why")


def _serve(theirs: connection.Connection, settings: VllmSettings, devices: str) -> None:
    """A copy's process: start, then answer the prompts that come until the other side is closed."""
    # Ctrl-C reaches the copies too. The parent ends them when it has kept their answers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a copy of the model runs in a process that multiprocessing has started, not in this one")
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    engine = VllmEngine(settings)
    theirs.send(None)
    try:
        while True:
            prompts, sampling = theirs.recv()
            for answered in engine.generate(prompts, sampling):
                theirs.send(answered)
            theirs.send(None)
    except (EOFError, BrokenPipeError):
        return


def _end_with(parent: int) -> None:
    # A parent that is killed can't tell its children.
    connection.wait([parent])
    os._exit(1)
