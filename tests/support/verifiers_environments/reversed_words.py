"""A small environment in the form of the published reverse-text: one prompt, and a reward with partial credit."""

import re
from difflib import SequenceMatcher

import verifiers.v1 as vf

_TAG = re.compile(r"<reversed_text>(.*?)</reversed_text>", re.DOTALL)


class ReversedData(vf.TaskData):
    answer: str


class ReversedTask(vf.Task[ReversedData]):
    @vf.stop
    async def single_turn(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 1

    @vf.reward(weight=1.0)
    async def lcs(self, trace: vf.Trace) -> float:
        match = _TAG.search(trace.last_reply)
        response = match.group(1).strip() if match else ""
        return SequenceMatcher(None, response, self.data.answer).ratio()


class ReversedConfig(vf.TasksetConfig):
    num_words: int = 50


class ReversedTaskset(vf.Taskset[ReversedTask, ReversedConfig]):
    def load(self) -> list[ReversedTask]:
        words = [f"{first}{second}ay" for first in "bcdfghjkl" for second in "aeiou"] + [f"x{n}y" for n in range(99)]
        return [
            ReversedTask(
                ReversedData(prompt=word, system_prompt="Reverse the text in <reversed_text> tags.", answer=word[::-1]),
                self.config.task,
            )
            for word in words[: self.config.num_words]
        ]


__all__ = ["ReversedTaskset"]
