"""The problems and the reward of an environment for TRL's GRPOTrainer and its relatives.

    with open_environment("quickstart") as environment:
        trainer = GRPOTrainer(
            model=...,
            train_dataset=trl_dataset(environment),
            reward_funcs=trl_reward(environment),
            args=GRPOConfig(max_steps=100, shuffle_dataset=False),
        )
        trainer.train()

This module needs the package `datasets`, which TRL brings.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from rgtrain.environments.message_text import message_text
from rgtrain.environments.task_environment import (
    TRAIN,
    VALIDATION,
    CompletionScore,
    EnvironmentProblem,
    GroupReport,
    SubmittedCompletion,
    TaskEnvironment,
)
from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.answers import opens_thinking

_Row = dict[str, Any]
# A completion in a group: the split, the problem and its score.
_Scored = tuple[str, EnvironmentProblem, CompletionScore]


def trl_dataset(
    environment: TaskEnvironment, *, split: str = TRAIN, size: int | None = None, tokenizer: Any = None
) -> Any:
    """Return the problems of an environment as a dataset for TRL.

    Training problems without a size are a stream. Each problem is made when the trainer asks for it, so the curriculum
    chooses it by the groups so far. TRL then needs `max_steps`, and `shuffle_dataset=False`: shuffling a stream makes
    1,000 problems before the first step, and the problems are in random order anyway.

    Args:
        environment: The environment.
        split: "train", or "validation" for the problems that training never uses.
        size: Number of problems to make at once; None for all validation problems, or for the stream.
        tokenizer: None for conversational prompts, which the trainer renders with its model's chat template. With a
            tokenizer, prompts are texts that were rendered with its chat template, for trainers of standard prompts.

    Returns:
        A `datasets.Dataset` or `datasets.IterableDataset` with the columns `prompt`, `problem`, `split`, `dataset` and
        `level`. `problem` is text for `trl_reward` and has the answer.

    Raises:
        ConfigError: The split is unknown, or there are too few problems.
    """
    from datasets import Dataset, IterableDataset

    if split not in (TRAIN, VALIDATION):
        raise ConfigError(f"unknown split {split!r}; {choose_from(split, (TRAIN, VALIDATION))}")
    available = len(environment if split == TRAIN else environment.validation)
    if size is not None and not 0 < size <= available:
        raise ConfigError(f"the {split} dataset has size {size!r}; the environment has 1 to {available} such problems")
    if split == VALIDATION:
        problems = list(environment.validation[:size])
    elif size is not None:
        problems = environment.take(size)
    else:
        return IterableDataset.from_generator(_Stream(environment, tokenizer))
    return Dataset.from_list([trl_row(problem, split, tokenizer) for problem in problems])


class _Stream:
    """Yields training problems without an end.

    `datasets` copies the generator of a stream, and serialises it to name a cache that streams do not use. Both give
    the same object, because an environment has processes and threads.
    """

    def __init__(self, environment: TaskEnvironment, tokenizer: Any):
        self._environment = environment
        self._tokenizer = tokenizer
        self._process = os.getpid()
        self._number = len(_STREAMS)
        _STREAMS.append(self)

    def __call__(self) -> Iterator[_Row]:
        if os.getpid() != self._process:
            raise ConfigError(
                "another process reads the stream of problems, and no results reach it; set dataloader_num_workers=0, "
                "or give trl_dataset a size"
            )
        while True:
            for problem in self._environment.take():
                yield trl_row(problem, TRAIN, self._tokenizer)

    def __deepcopy__(self, memo: Any) -> "_Stream":
        return self

    def __reduce__(self) -> tuple[Callable[[int], "_Stream"], tuple[int]]:
        return _STREAMS.__getitem__, (self._number,)


_STREAMS: list[_Stream] = []


def trl_row(problem: EnvironmentProblem, split: str, tokenizer: Any = None) -> _Row:
    """Return a problem as a row of `trl_dataset`, whose arguments `split` and `tokenizer` are."""
    messages: Any = [dict(message) for message in problem.messages]
    begun = problem.thinking_begun
    if tokenizer is not None:
        messages = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The trainer adds the token when it encodes the text.
        messages = messages.removeprefix(tokenizer.bos_token or "")
        begun = opens_thinking(messages)
    return {
        "prompt": messages,
        "problem": json.dumps(asdict(problem) | {"thinking_begun": begun}),
        "split": split,
        "dataset": problem.dataset,
        "level": problem.level,
    }


def trl_reward(environment: TaskEnvironment) -> Callable[..., list[float]]:
    """Return the reward of an environment as a reward function for TRL.

    It scores completions exactly as this project's own training does. Each part of the reward and the accuracy become
    metrics, and each completion's answer and accuracy become columns of TRL's completions table. Results of training
    problems are reported to the curriculum, in groups that all processes of the trainer contribute to.

    Args:
        environment: The environment of the dataset, or in another process one with the same arguments.

    Returns:
        The function, for `reward_funcs`.
    """

    def rgtrain_reward(
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        problem: Sequence[str],
        split: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        problems = [_parse_problem(text) for text in problem]
        lengths = [None] * len(problems) if completion_ids is None else [len(ids) for ids in completion_ids]
        scores = environment.score(
            SubmittedCompletion(one, _text(completion, one), length)
            for one, completion, length in zip(problems, completions, lengths, strict=True)
        )
        if log_metric is not None:
            for name in scores[0].parts:
                log_metric(f"rgtrain/reward_{name}", fmean(score.parts[name] for score in scores))
            log_metric("rgtrain/accuracy", fmean(score.accuracy for score in scores))
            log_metric("rgtrain/answered", fmean(score.answer is not None for score in scores))
            log_metric("rgtrain/not_judged", fmean(score.error is not None for score in scores))
        if log_extra is not None:
            log_extra("answer", [score.answer for score in scores])
            log_extra("accuracy", [score.accuracy for score in scores])
        _report(environment, list(zip(split, problems, scores, strict=True)), log_metric)
        return [score.reward for score in scores]

    return rgtrain_reward


def _report(
    environment: TaskEnvironment, scored: list[_Scored], log_metric: Callable[[str, float], None] | None
) -> None:
    groups: dict[str, list[_Scored]] = {}
    for one in _of_all_processes(scored):
        if one[0] == TRAIN:
            groups.setdefault(one[1].id, []).append(one)
    if not groups:
        return
    metrics = environment.report(
        GroupReport(group[0][1], [score.accuracy for *_, score in group], [score.reward for *_, score in group])
        for group in groups.values()
    )
    if log_metric is not None:
        for name, value in metrics.items():
            log_metric(f"rgtrain/{name}", value)


def _of_all_processes(scored: list[_Scored]) -> list[_Scored]:
    """Return the completions of all processes of the trainer, which may have parts of one group each."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return scored
    parts: list[list[_Scored]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, scored)
    return [one for part in parts for one in part]


def _parse_problem(text: str) -> EnvironmentProblem:
    fields = json.loads(text)
    return EnvironmentProblem(**fields | {"messages": tuple(fields["messages"])})


def _text(completion: str | Sequence[Mapping[str, Any]], problem: EnvironmentProblem) -> str:
    """Return the text of a completion, which is a text or a list with the assistant's message."""
    if isinstance(completion, str):
        return completion
    message = completion[-1]
    return message_text(message.get("content"), message.get("reasoning_content"), thinking_begun=problem.thinking_begun)
