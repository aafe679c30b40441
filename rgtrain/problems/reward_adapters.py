"""Turn reward functions that were written for TRL into reward functions of this package."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from rgtrain.problems.judged_completion import FIELDS, JudgedCompletion


def reward_from_trl(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a function `f(prompts, completions, **columns) -> list[float | None]`.

    Args:
        function: The function, which may be asynchronous. It gets prompts and completions as chats, the fields of
            `JudgedCompletion` as columns, and the column `answer` with the expected answers. Without `**columns`, it
            gets only the columns that it declares.

    Returns:
        A batched reward function. None, with which the function abstains, counts as 0.

    >>> def short(completions, **columns):
    ...     return [1.0 if len(completion[0]["content"]) < 5 else None for completion in completions]
    >>> reward_from_trl(short)([JudgedCompletion(text, 0.0, 1, 10) for text in ("four", "seventeen")])
    [1.0, 0.0]
    """
    declared = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in declared)
    names = {parameter.name for parameter in declared}

    def columns(completions: Sequence[JudgedCompletion]) -> dict[str, list[Any]]:
        given = {name: [getattr(completion, name) for completion in completions] for name in FIELDS}
        given["prompts"] = [list(messages) for messages in given["messages"]]
        given["completions"] = [[{"role": "assistant", "content": text}] for text in given["text"]]
        given["answer"] = given["expected_answer"]
        return given if takes_all else {name: values for name, values in given.items() if name in names}

    def numbers(rewards: Sequence[float | None]) -> list[float]:
        return [0.0 if reward is None else reward for reward in rewards]

    if inspect.iscoroutinefunction(function):

        async def adapted_async(completions: Sequence[JudgedCompletion]) -> list[float]:
            return numbers(await function(**columns(completions)))

        return adapted_async

    def adapted(completions: Sequence[JudgedCompletion]) -> list[float]:
        return numbers(function(**columns(completions)))

    return adapted
