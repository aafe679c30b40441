"""Data parallelism: several copies of a vLLM engine, each in its own process and on its own GPUs."""

import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing import connection
from typing import Any, NamedTuple

from rgtrain.evaluation.engine_interface import Completion, EngineFailed, Prompt, Sampling
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.evaluation.vllm_engine import NumberedPrompt, VllmEngine, VllmSettings, prompt_seed
from rgtrain.machine.devices import visible_gpus

_POLL_SECONDS = 0.5


# A copy asks for more prompts once it has no more completions than it generates together. It then gets this share in
# addition, so that it has a full batch until the next prompts arrive.
_RESERVE = 1 / 16


class _Ready(NamedTuple):
    """A copy's message that it can generate, with the attributes of its VllmEngine."""

    max_num_seqs: int
    seeds_prompts: bool


class _Ask(NamedTuple):
    """A copy's request for prompts with this number of completions."""

    num_completions: int


class _Portion(NamedTuple):
    """Prompts for a copy, and whether it gets no more."""

    prompts: list[NumberedPrompt]
    is_last: bool


class ReplicatedEngine:
    """Several engines that take prompts from one queue.

    A copy holds only the prompts that it generates together, and gets more as it finishes completions. Which copy
    generates a prompt therefore depends on timing. At temperature 0, this has no influence on completions. When
    sampling, it has none if each prompt has its own seed. If the engines cannot afford that, prompts are dealt in
    advance: of n copies, copy i generates prompts i, i + n, i + 2n and so on.
    """

    def __init__(
        self, settings: VllmSettings, *, num_copies: int, start: Callable[[VllmSettings], VllmEngine] = VllmEngine
    ):
        """Start all copies and wait until they are ready.

        Args:
            settings: The settings of the first copy. The others differ in their seeds.
            num_copies: The number of copies.
            start: Starts an engine in the process of a copy.

        Raises:
            EngineFailed: A copy ended before it was ready.
        """
        self._seed = settings.seed
        self._connections: list[connection.Connection] = []
        self._processes: list[Any] = []
        try:
            for number in range(num_copies):
                self._start(number, settings, start)
            self._ready = [self._receive(copy) for copy in self._connections]
        except BaseException:
            # Otherwise Python would wait at its exit for the copies that are ready.
            self.close()
            raise

    def _start(self, number: int, settings: VllmSettings, start: Callable[[VllmSettings], VllmEngine]) -> None:
        context = multiprocessing.get_context("spawn")
        parent_end, child_end = context.Pipe()
        size = settings.tensor_parallel_size
        devices = visible_gpus()[number * size : (number + 1) * size]
        # Copies with the same seed would draw the same random numbers.
        own_settings = dataclasses.replace(settings, seed=settings.seed + number)
        process = context.Process(target=_serve, args=(child_end, own_settings, ",".join(devices), start))
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
        shared = self._share(prompts, sampling)
        busy = list(self._connections)
        failure: EngineFailed | None = None
        ends_at: float | None = None
        for copy, first in zip(busy, shared.first, strict=True):
            self._send(copy, sampling)
            self._send(copy, _Portion(first, is_last=not shared.num_waiting))
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
                    if isinstance(received, _Ask):
                        if ends_at is None:
                            taken = shared.take(received.num_completions)
                            self._send(copy, _Portion(taken, is_last=not shared.num_waiting))
                        continue
                except EngineFailed as error:
                    failure = failure or error
                    received = None
                if received is None:
                    busy.remove(copy)
                    continue
                yield received
        STOP.check()
        if failure is not None:
            raise failure

    def _share(self, prompts: Sequence[Prompt], sampling: Sampling) -> "SharedPrompts":
        is_sampled = sampling.temperature > 0
        if is_sampled and not all(ready.seeds_prompts for ready in self._ready):
            return SharedPrompts.dealt(prompts, num_copies=len(self._ready))
        numbered = [
            NumberedPrompt(position, prompt, prompt_seed(self._seed, position) if is_sampled else None)
            for position, prompt in enumerate(prompts)
        ]
        return SharedPrompts(numbered, limits=[ready.max_num_seqs for ready in self._ready])

    def close(self) -> None:
        """End all copies. A copy that does not end within 30 s is killed."""
        for copy in self._connections:
            copy.close()
        for process in self._processes:
            process.join(timeout=30)
            process.kill()

    def _send(self, copy: connection.Connection, message: Any) -> None:
        try:
            copy.send(message)
        except OSError:
            raise self._failure_of(copy) from None

    def _receive(self, copy: connection.Connection) -> Any:
        try:
            return copy.recv()
        except (EOFError, ConnectionResetError):
            raise self._failure_of(copy) from None

    def _failure_of(self, copy: connection.Connection) -> EngineFailed:
        number = self._connections.index(copy)
        return EngineFailed(f"copy {number} of the model ended; its output above says why")


class SharedPrompts:
    """The prompts with which each copy starts, and the queue of those that wait for a copy.

    Copies start with equal numbers of completions, as many as they generate together. The completions of a prompt are
    divided only if whole prompts would give unequal shares, so only at the end of the queue.

    Attributes:
        first: The prompts with which each copy starts.
        num_waiting: The number of completions in the queue.
    """

    def __init__(self, prompts: Sequence[NumberedPrompt], *, limits: Sequence[int]):
        """Take the first prompts from the queue.

        Args:
            prompts: The prompts in their order.
            limits: The number of completions that each copy generates together.
        """
        self._waiting = deque(prompts)
        self.num_waiting = sum(numbered.prompt.num_samples for numbered in prompts)
        self.first: list[list[NumberedPrompt]] = [[] for _ in limits]
        # The first copies get one more if the completions cannot be divided evenly.
        shares = [(self.num_waiting + number) // len(limits) for number in reversed(range(len(limits)))]
        rooms = [min(limit, share) for limit, share in zip(limits, shares, strict=True)]
        while (room := max(rooms)) > 0:
            copy = rooms.index(room)
            taken = self._pop(shares[copy])
            shares[copy] -= taken.prompt.num_samples
            rooms[copy] -= taken.prompt.num_samples
            self.first[copy].append(taken)

    @classmethod
    def dealt(cls, prompts: Sequence[Prompt], *, num_copies: int) -> "SharedPrompts":
        """Deal all prompts in turn, whole and without seeds."""
        shared = cls([], limits=[0] * num_copies)
        numbered = [NumberedPrompt(position, prompt) for position, prompt in enumerate(prompts)]
        shared.first = [numbered[number::num_copies] for number in range(num_copies)]
        return shared

    def take(self, num_completions: int) -> list[NumberedPrompt]:
        """Take prompts for one copy from the queue.

        Args:
            num_completions: The number of completions for which the copy has room.

        Returns:
            The prompts, at the end at most an equal share of the rest. None of them if no prompts wait.
        """
        share = -(-self.num_waiting // len(self.first))
        room = min(num_completions, share)
        taken: list[NumberedPrompt] = []
        while room > 0:
            taken.append(self._pop(share))
            share -= taken[-1].prompt.num_samples
            room -= taken[-1].prompt.num_samples
        return taken

    def _pop(self, share: int) -> NumberedPrompt:
        """Take the next prompt, or `share` of its completions if it has more."""
        position, prompt, seed = self._waiting.popleft()
        num_taken = min(share, prompt.num_samples)
        if num_rest := prompt.num_samples - num_taken:
            rest = dataclasses.replace(prompt, num_samples=num_rest)
            self._waiting.appendleft(NumberedPrompt(position, rest, None if seed is None else seed + num_taken))
        self.num_waiting -= num_taken
        return NumberedPrompt(position, dataclasses.replace(prompt, num_samples=num_taken), seed)


class _ParentFeed:
    """The prompts that the parent sends to a copy. A thread receives them, so that the parent never waits for a copy.

    Args:
        parent_connection: The connection to the parent.
        max_num_seqs: The number of completions that the copy generates together.
    """

    def __init__(self, parent_connection: connection.Connection, *, max_num_seqs: int):
        self._connection = parent_connection
        self._max_num_seqs = max_num_seqs
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_asked = self._is_last = False
        threading.Thread(target=self._receive, daemon=True).start()

    def begin(self) -> Sampling:
        """Wait for the next call of `generate`.

        Returns:
            Its sampling parameters.

        Raises:
            EOFError: The parent has closed the connection.
        """
        # The parent sends the first prompts without being asked.
        self._is_asked, self._is_last = True, False
        sampling: Sampling = self._next()
        return sampling

    def take(self, num_running: int) -> Sequence[NumberedPrompt] | None:
        """Return the prompts that have arrived, as described in `PromptFeed.take`, and ask for more if there is room.

        Args:
            num_running: The number of completions that the engine has not finished.

        Returns:
            The prompts; None if no more will come.

        Raises:
            EOFError: The parent has closed the connection.
        """
        if self._is_last:
            return None
        if not self._is_asked and num_running <= self._max_num_seqs:
            reserve = max(1, int(_RESERVE * self._max_num_seqs))
            self._connection.send(_Ask(self._max_num_seqs + reserve - num_running))
            self._is_asked = True
        if num_running and self._received.empty():
            return ()
        portion: _Portion = self._next()
        self._is_asked, self._is_last = False, portion.is_last
        return portion.prompts

    def _next(self) -> Any:
        message = self._received.get()
        if isinstance(message, EOFError):
            raise message
        return message

    def _receive(self) -> None:
        try:
            while True:
                self._received.put(self._connection.recv())
        except (EOFError, OSError):
            self._received.put(EOFError())


def _serve(
    parent_connection: connection.Connection,
    settings: VllmSettings,
    devices: str,
    start: Callable[[VllmSettings], VllmEngine],
) -> None:
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
    with closing(start(settings)) as engine:
        feed = _ParentFeed(parent_connection, max_num_seqs=engine.max_num_seqs)
        try:
            parent_connection.send(_Ready(engine.max_num_seqs, engine.seeds_prompts))
            while True:
                sampling = feed.begin()
                for answered in engine.generate_fed(feed, sampling):
                    parent_connection.send(answered)
                parent_connection.send(None)
        except (EOFError, BrokenPipeError):
            return


def _exit_with_parent(sentinel: int) -> None:
    # A parent that is killed can't end its children.
    connection.wait([sentinel])
    os._exit(1)
