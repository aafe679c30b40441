"""A small environment of mathematics: chat messages, an endless taskset, several rewards, and math-verify."""

import asyncio
import itertools
import re
from collections.abc import Iterator

import verifiers.v1 as vf


class SumData(vf.TaskData):
    info: dict[str, int]


class SumConfig(vf.TaskConfig):
    base: int = 10


class SumTask(vf.Task[SumData, vf.State, SumConfig]):
    @vf.reward(weight=3.0)
    async def correct(self, task: SumData, trace: vf.Trace) -> float:
        return vf.verify_boxed_math_answer(trace.last_reply, str(task.info["sum"]))

    @vf.reward
    async def form(self, trace: vf.Trace) -> dict[str, float]:
        async def has(text: str) -> bool:
            await asyncio.sleep(60)
            return text in trace.last_reply

        boxed, thought = await asyncio.gather(has("\\boxed"), has("</think>"))
        return {"boxed": float(boxed)} | ({"thought": 1.0} if thought else {})

    @vf.reward(weight=-1.0)
    async def shouts(self, trace: vf.Trace) -> float:
        return float(bool(re.fullmatch("[A-Z!]+", trace.last_reply)))

    @vf.metric
    async def num_chars(self, trace: vf.Trace) -> float:
        return len(trace.last_reply)


class SumTaskset(vf.Taskset[SumTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self) -> Iterator[SumTask]:
        for number in itertools.count():
            first, second = number, number * number
            messages = [
                {"role": "user", "content": "What is 1 + 1?"},
                {"role": "assistant", "content": "\\boxed{2}"},
                {"role": "user", "content": f"What is {first} + {second}?"},
            ]
            yield SumTask(SumData(prompt=messages, info={"sum": first + second}), self.config.task)


__all__ = ["SumTaskset"]
