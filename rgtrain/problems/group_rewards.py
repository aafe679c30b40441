"""Compute the rewards of the completions of a prompt, in training, validation and outside of training."""

import asyncio
import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rgtrain.errors import ConfigError
from rgtrain.problems.answers import judged_text
from rgtrain.problems.judged_completion import JudgedCompletion
from rgtrain.problems.own_rewards import OwnOptions, OwnReward
from rgtrain.problems.rewards import RewardSpec, combine, parse_reward
from rgtrain.problems.scoring import FAILURES, Score, Scorer
from rgtrain.problems.trusted_rewards import RewardFailure, TrustedReward

_LOG = logging.getLogger(__name__)
_SHOWN_CHARACTERS = 300
_ASYNC_CONCURRENCY = 16
# Exceptions that a function raises if it needs something that the sandbox refuses.
_SANDBOX_ERRORS = ("PermissionError", "ModuleNotFoundError", "ImportError", "OSError", "FileNotFoundError")


class FinishedCompletion(NamedTuple):
    """A completion that is to be rewarded.

    Attributes:
        text: Its text without special tokens. Untrusted text of a model.
        num_tokens: Its length in tokens.
        finish_reason: "stop", "length" (see `finish_reason_of`), or None if unknown.
    """

    text: str
    num_tokens: int
    finish_reason: str | None = None


class CompletionReward(NamedTuple):
    """The reward of a completion.

    Attributes:
        reward: The weighted sum of the parts.
        details: Numbers by name, such as `acc` (the accuracy) and `reward_PART`. All completions have the same names.
        answer: The extracted answer; None if there is none.
    """

    reward: float
    details: dict[str, float]
    answer: str | None


class GroupRewards:
    """Computes the rewards of groups of completions. Several groups can be computed at the same time.

    Args:
        parts: The configuration's `reward.parts`.
        scorer: A running scorer, which also runs own reward functions that are not trusted.
        max_tokens: The maximum length of a completion in tokens.

    Raises:
        ConfigError: A part is unknown, or its arguments are invalid.

    >>> entry = dict(question="2 + 2 =", answer="4", metadata=dict(source_dataset="chain_sum"))
    >>> with Scorer(num_workers=1) as scorer:
    ...     rewards = GroupRewards(dict(accuracy=dict(weight=2)), scorer=scorer, max_tokens=100)
    ...     group = [FinishedCompletion("<answer>4</answer>", 5), FinishedCompletion("Four.", 2)]
    ...     [(one.reward, one.answer) for one in asyncio.run(rewards.compute(group, entry))]
    [(2.0, '4'), (0.0, None)]
    """

    def __init__(self, parts: Mapping[str, Any], *, scorer: Scorer, max_tokens: int):
        self._specs = parse_reward(parts)
        self._scorer = scorer
        self._max_tokens = max_tokens
        self._own = [_OwnPart(spec, spec.own, scorer) for spec in self._specs if spec.own is not None]

    async def compute(
        self,
        completions: Sequence[FinishedCompletion],
        entry: Mapping[str, Any],
        *,
        dataset: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        level: int | None = None,
        step: int | None = None,
        thinking_begun: bool = False,
        is_trial: bool = False,
    ) -> list[CompletionReward]:
        """Score the completions of a problem.

        Args:
            completions: All completions of one prompt.
            entry: The problem's entry in Reasoning Gym.
            dataset: Name of the dataset; by default the entry's.
            messages: The prompt as a chat, for own reward functions.
            level: The level of the problem in a curriculum.
            step: The training step.
            thinking_begun: Whether the prompt ends with an opening think tag.
            is_trial: Whether a failure of an own function is an error. Otherwise, it is logged and counted, and the
                parts of the function have the value of its option `on_failure`.

        Returns:
            The reward of each completion, in order.

        Raises:
            ConfigError: An own function fails in a trial.
            RuntimeError: A trusted function hangs in all of its calls, so that no call can succeed.
        """
        answers = [judged_text(one.text, entry, thinking_begun=thinking_begun) for one in completions]
        submitted = [self._scorer.submit(answer, entry) for answer in answers]
        scores = await asyncio.gather(*(asyncio.wrap_future(score) for score in submitted))

        def judged(**fields: Any) -> list[JudgedCompletion]:
            return [
                JudgedCompletion(
                    completion.text,
                    score.accuracy,
                    completion.num_tokens,
                    self._max_tokens,
                    extracted_answer=answer,
                    finish_reason=completion.finish_reason,
                    **fields,
                )
                for completion, answer, score in zip(completions, answers, scores, strict=True)
            ]

        own: list[dict[str, float]] = [{} for _ in completions]
        failed: list[dict[str, float]] = [{} for _ in completions]

        async def call(part: _OwnPart) -> None:
            # A trusted function could change these values, so each function gets its own.
            group: list[JudgedCompletion] = []
            group += judged(
                expected_answer=entry.get("answer"),
                question=str(entry.get("question", "")),
                messages=copy.deepcopy(list(messages)),
                entry=copy.deepcopy(dict(entry)),
                dataset=dataset or entry["metadata"]["source_dataset"],
                level=level,
                step=step,
                group=group,
            )
            values, failures = await part.compute(group, is_trial=is_trial)
            for number in range(len(group)):
                own[number].update(values[number])
                failed[number][f"num_failed_{part.spec.label}"] = float(failures[number])

        await asyncio.gather(*map(call, self._own))
        return [self._reward(*values) for values in zip(judged(), answers, scores, own, failed, strict=True)]

    def _reward(
        self,
        completion: JudgedCompletion,
        answer: str | None,
        score: Score,
        own: Mapping[str, float],
        failed: Mapping[str, float],
    ) -> CompletionReward:
        reward, parts = combine(self._specs, completion, own=own)
        details = {
            # verl uses the name "acc" for the core validation metric.
            "acc": score.accuracy,
            "solved": float(score.accuracy == 1),
            "answered": float(answer is not None),
            "response_length": float(completion.num_tokens),
            "score_seconds": score.seconds,
        }
        details.update({f"reward_{name}": value for name, value in parts.items()})
        details.update(failure_counts(score))
        details.update(failed)
        return CompletionReward(reward, details, answer)

    async def check(
        self,
        entry: Mapping[str, Any],
        *,
        dataset: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        level: int | None = None,
    ) -> None:
        """Call every own function in a trial with a right, a wrong and an empty completion, and the right one alone.

        Args:
            entry: The problem's entry in Reasoning Gym.
            dataset: Name of the dataset; by default the entry's.
            messages: The prompt as a chat.
            level: The level of the problem in a curriculum.

        Raises:
            ConfigError: A function fails.
        """
        if not self._own:
            return
        texts = f"<answer>{entry.get('answer')}</answer>", "<answer>?</answer>", ""
        group = [FinishedCompletion(text, num_tokens=1 + len(text) // 4, finish_reason="stop") for text in texts]
        # In validation, a prompt often has one completion.
        for completions in (group, group[:1]):
            await self.compute(
                completions, entry, dataset=dataset, messages=messages, level=level, step=0, is_trial=True
            )


def needs_whole_groups(parts: Mapping[str, Any]) -> bool:
    """Return whether an own function receives the other completions of a prompt.

    Args:
        parts: The configuration's `reward.parts`.

    Returns:
        Whether all completions of a prompt must be computed together.

    Raises:
        ConfigError: A part is unknown, or its arguments are invalid.
    """
    specs = [spec for spec in parse_reward(parts) if spec.own is not None]
    return any(OwnReward(spec.name, spec.args).sees_group for spec in specs)


def failure_counts(score: Score) -> dict[str, float]:
    """Return `num_timeout`, `num_crash` and so on: 1 for the kind of failure of `score`, and 0 for all others."""
    return {f"num_{failure.replace(' ', '_')}": float(score.failure == failure) for failure in FAILURES}


def finish_reason_of(num_tokens: int, last_token: int | None, *, max_tokens: int, end_token: int | None) -> str:
    """Return "length" if a completion was cut off, or else "stop".

    Args:
        num_tokens: Its length in tokens.
        last_token: The id of its last token; None if it is empty.
        max_tokens: The maximum length of a completion in tokens.
        end_token: The id of the end-of-sequence token.

    Returns:
        The reason.
    """
    return "length" if num_tokens >= max_tokens and last_token != end_token else "stop"


class _OwnPart:
    """An own function with its options. It counts and reports failures."""

    def __init__(self, spec: RewardSpec, options: OwnOptions, scorer: Scorer):
        self.spec = spec
        self.function = OwnReward(spec.name, spec.args, tuple(options.parts))
        self._options = options
        self._scorer = scorer
        self._num_failures = 0
        self._trusted: TrustedReward | None = None
        if options.trusted:
            concurrency = options.concurrency or (_ASYNC_CONCURRENCY if self.function.is_async else 1)
            self._trusted = TrustedReward(self.function, timeout_s=options.timeout_s, concurrency=concurrency)
        else:
            self._number = scorer.prepare_reward(spec.name, args=spec.args, parts=tuple(options.parts))

    async def compute(
        self, group: Sequence[JudgedCompletion], *, is_trial: bool
    ) -> tuple[list[dict[str, float]], list[bool]]:
        """Call the function for a group.

        Args:
            group: The completions of a prompt.
            is_trial: Whether to raise failures.

        Returns:
            The parts of each completion by their names in metrics, and whether the function failed for it.

        Raises:
            ConfigError: The function fails in the trial.
        """
        calls = [group] if self.function.is_batched else [[completion] for completion in group]
        trusted = self._trusted
        results = await (self._call_sandboxed(calls) if trusted is None else _call_trusted(trusted, calls))
        labels = list(self.spec.part_weights)
        values: list[dict[str, float]] = []
        failures: list[bool] = []
        for call, result in zip(calls, results, strict=True):
            failures += [isinstance(result, str)] * len(call)
            if isinstance(result, str):
                if is_trial:
                    raise ConfigError(f"reward {self.spec.name!r} fails in a trial: {_described(result, call)}")
                self._report(result, call)
                result = [self._options.on_failure] * (len(call) * len(labels))
            for start in range(0, len(result), len(labels)):
                values.append(dict(zip(labels, result[start : start + len(labels)], strict=True)))
        return values, failures

    async def _call_sandboxed(self, calls: Sequence[Sequence[JudgedCompletion]]) -> list[list[float] | str]:
        """Return the values of each call, or the reason of its failure."""
        if not self.function.sees_group:
            # Send a completion without the others.
            calls = [[dataclasses.replace(one, group=()) for one in call] for call in calls]
        results = await asyncio.wrap_future(
            self._scorer.submit_rewards(
                self._number,
                calls,
                num_values=len(calls[0]) * self.function.num_values,
                executes_text=self._options.executes_text,
            )
        )
        return [_failure(result) if result.error else list(result.values) for result in results]

    def _report(self, reason: str, completions: Sequence[JudgedCompletion]) -> None:
        self._num_failures += 1
        # Report the first failure, the second, the fourth, and so on.
        if self._num_failures & (self._num_failures - 1) == 0:
            _LOG.warning(
                "reward %r failed (%d times so far), so its value is %g: %s",
                self.spec.name,
                self._num_failures,
                self._options.on_failure,
                _described(reason, completions),
            )


async def _call_trusted(
    function: TrustedReward, calls: Sequence[Sequence[JudgedCompletion]]
) -> list[list[float] | str]:
    """Return the values of each call, or the reason of its failure."""

    async def call(completions: Sequence[JudgedCompletion]) -> list[float] | str:
        try:
            return await function.values(completions)
        except RewardFailure as failure:
            return str(failure)

    return await asyncio.gather(*map(call, calls))


def _described(reason: str, completions: Sequence[JudgedCompletion]) -> str:
    first = completions[0]
    return f"{reason}; the problem is of {first.dataset}, and the completion {first.text[:_SHOWN_CHARACTERS]!r}"


def _failure(result: Score) -> str:
    """Return why a call in the sandbox failed."""
    kind = result.failure
    if kind in ("timeout", "memory"):
        return f"it exceeds reward.scorer.{'timeout_s' if kind == 'timeout' else 'memory_mb'}"
    if kind != "exception":
        return "it ended its process"
    name = (result.error or "").partition(": ")[2]
    reason = f"{name}: {result.message}" if result.message else name
    if name in _SANDBOX_ERRORS:
        reason += " (the sandbox has no files and no network: load at the top of the module, or set `trusted: true`)"
    return reason
