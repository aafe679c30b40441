"""NeMo Gym's form of a verifier over HTTP: the text and length of a response, and the rows of its inputs.

A resources server of NeMo Gym has `/seed_session`, `/verify` and `/aggregate_metrics`. The requests and replies are
those of nemo_gym/base_resources_server.py as of August 2026 (commit 07d6b0d).
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rgtrain.environments.message_text import message_text
from rgtrain.environments.task_environment import EnvironmentProblem, SubmittedCompletion

_TASK = "_ng_task_index"


def inputs_row(problem: EnvironmentProblem, *, agent: str, max_response_tokens: int) -> dict[str, Any]:
    """Return the row of a problem in a file of inputs.

    Args:
        problem: The problem.
        agent: The name of the agent in NeMo Gym's configuration.
        max_response_tokens: The longest completion in tokens.

    Returns:
        The row, which has no answer.
    """
    return {
        "responses_create_params": {
            "input": [dict(message) for message in problem.messages],
            "max_output_tokens": max_response_tokens,
        },
        "problem_id": problem.id,
        "dataset": problem.dataset,
        "level": problem.level,
        "agent_ref": {"type": "responses_api_agents", "name": agent},
    }


def completion_of(problem: EnvironmentProblem, response: Mapping[str, Any]) -> SubmittedCompletion:
    """Read the completion from a response of OpenAI's Responses API, which is untrusted.

    Reasoning that a response has apart from the text counts as thinking before it.

    Args:
        problem: The problem.
        response: The response.

    Returns:
        The completion.

    Raises:
        ValueError: The response has another form.
    """
    thoughts, texts, num_generated = [], [], 0
    for item in _sequence(response.get("output"), "output"):
        kind = _mapping(item, "an item of output").get("type", "message")
        num_generated += len(_sequence(item.get("generation_token_ids") or (), "generation_token_ids"))
        if kind == "reasoning":
            parts = item.get("content") or item.get("summary") or ()
            thoughts += list(_texts(parts))
        elif kind == "message":
            content = item.get("content")
            texts += [content] if isinstance(content, str) else list(_texts(content))
    text = message_text("".join(texts), "".join(thoughts), thinking_begun=problem.thinking_begun)
    usage = response.get("usage")
    num_tokens = num_generated or (usage.get("output_tokens") if isinstance(usage, Mapping) else None)
    if num_tokens is not None and (type(num_tokens) is not int or num_tokens < 0):
        raise ValueError("usage.output_tokens of the response is no count")
    return SubmittedCompletion(
        problem,
        text,
        num_tokens=num_tokens,
        finish_reason="length" if response.get("incomplete_details") else "stop",
    )


def summarise(replies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of all numbers in replies of `/verify`, by task and over all.

    Args:
        replies: The replies, each with the index of its task.

    Returns:
        The reply of `/aggregate_metrics`.
    """
    by_task: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for reply in replies:
        task = reply.get(_TASK, 0)
        by_task[task if type(task) is int else 0].append(reply)
    groups = [{**_means(by_task[task]), _TASK: task} for task in sorted(by_task)]
    overall = _means(replies)
    return {"group_level_metrics": groups, "agent_metrics": overall, "key_metrics": overall}


def _means(replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for reply in replies:
        for name, value in reply.items():
            if (
                isinstance(value, int | float)
                and not name.startswith("_")
                and abs(value) < 1e300
                and math.isfinite(value)
            ):
                values[f"mean/{name}"].append(value)
    return {name: fmean(of_name) for name, of_name in values.items()}


def _texts(parts: Any) -> Iterator[str]:
    for part in _sequence(parts, "the content of an item"):
        text = _mapping(part, "a part of a content").get("text")
        # Refusals and other parts have no text.
        if isinstance(text, str):
            yield text


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} of the response is no list")
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} of the response is no object")
    return value
