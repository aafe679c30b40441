"""Call trusted reward functions in this process, with a deadline and a limit on calls at the same time.

Asynchronous functions run on an event loop in a separate thread, so that their clients keep their connections, and a
slow function does not hold up the caller. Plain functions run in daemon threads.
"""

import asyncio
import threading
from collections.abc import Sequence

from rgtrain.problems.judged_completion import JudgedCompletion
from rgtrain.problems.own_rewards import OwnReward

# A busy event loop may take this long to answer.
_MIN_PATIENCE_SECONDS = 1.0
# If so many calls hang, the next ones probably hang too.
_MAX_HANGING = 8


class RewardFailure(Exception):
    """A call of a trusted reward function failed. The message is the reason."""


class TrustedReward:
    """Calls one trusted function. It can be awaited from any event loop.

    Args:
        function: The function.
        timeout_s: The deadline of a call in seconds. Waiting for other calls does not count.
        concurrency: Maximum number of calls at the same time.
    """

    def __init__(self, function: OwnReward, *, timeout_s: float, concurrency: int):
        self._function = function
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._free = asyncio.Semaphore(concurrency)
        # Number of calls that have exceeded the deadline and still run.
        self._num_hanging = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="trusted reward").start()

    async def values(self, completions: Sequence[JudgedCompletion]) -> list[float]:
        """Call the function.

        Args:
            completions: All completions of a prompt if the function is batched, otherwise one.

        Returns:
            The values as `OwnReward.values` returns them.

        Raises:
            RewardFailure: The function raises, exceeds its deadline or returns something else.
            RuntimeError: The function blocks its event loop or all of its threads, so that no call can succeed.
        """
        patience_s = max(self._timeout_s, _MIN_PATIENCE_SECONDS)
        call = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._limited(completions), self._loop))
        while not (await asyncio.wait({call}, timeout=patience_s))[0]:
            # The deadline needs an event loop that runs.
            answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))
            if not (await asyncio.wait({answer}, timeout=patience_s))[0]:
                raise RuntimeError(
                    f"reward {self._function.name!r} blocks its event loop for over {patience_s:g} s; await an "
                    "asynchronous client in it, or declare it with `def` instead of `async def`"
                )
        return call.result()

    async def _limited(self, completions: Sequence[JudgedCompletion]) -> list[float]:
        async with self._free:
            if self._num_hanging >= max(self._concurrency, _MAX_HANGING):
                raise RuntimeError(
                    f"{self._num_hanging} calls of reward {self._function.name!r} hang beyond timeout_s="
                    f"{self._timeout_s:g}; give its requests a shorter time limit"
                )
            call = asyncio.ensure_future(
                self._awaited(completions) if self._function.is_async else self._in_thread(completions)
            )
            if not (await asyncio.wait({call}, timeout=self._timeout_s))[0]:
                self._num_hanging += 1
                call.add_done_callback(self._ended_late)
                # A thread cannot be cancelled, and an asynchronous function may ignore it, so do not wait.
                if self._function.is_async:
                    call.cancel()
                raise RewardFailure(f"it exceeds timeout_s={self._timeout_s:g}")
            if call.cancelled():
                raise RewardFailure("it cancelled itself")
            return call.result()

    async def _awaited(self, completions: Sequence[JudgedCompletion]) -> list[float]:
        try:
            return await self._function.values_async(completions)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit would end the thread of the event loop.
            raise RewardFailure(reason_of(error)) from error

    def _ended_late(self, call: "asyncio.Future[list[float]]") -> None:
        self._num_hanging -= 1
        if not call.cancelled():
            call.exception()  # Otherwise asyncio logs that nothing retrieved it.

    async def _in_thread(self, completions: Sequence[JudgedCompletion]) -> list[float]:
        result: asyncio.Future[list[float]] = self._loop.create_future()

        def work() -> None:
            try:
                values = self._function.values(completions)
            except BaseException as error:
                self._loop.call_soon_threadsafe(result.set_exception, RewardFailure(reason_of(error)))
            else:
                self._loop.call_soon_threadsafe(result.set_result, values)

        # A thread of a pool would keep the process from exiting while it hangs.
        threading.Thread(target=work, daemon=True, name="trusted reward call").start()
        return await result


def reason_of(error: BaseException) -> str:
    """Return the type and the message of an exception on one line."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # An exception class of the user may fail here too.
        message = ""
    return f"{type(error).__name__}: {message:.300}" if message else type(error).__name__
