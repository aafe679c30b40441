"""verl's reward managers with the run's own reward, which the confined scorer computes.

verl looks a manager up by `reward.reward_manager.name` in this module, which `reward.reward_manager.module.path` names.
Every manager that verl registers is found under its own name, for example `naive` or `dapo`. It scores with the parts
of `reward.parts`, unless `reward.custom_reward_function` names another function.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import ray
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.problems import Scorer, load_entry
from rgtrain.problems.answers import PROMPT_END_TOKENS, opens_thinking
from rgtrain.problems.group_rewards import (
    CompletionReward,
    FinishedCompletion,
    GroupRewards,
    finish_reason_of,
    needs_whole_groups,
)
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring.judges import allow_verifier

# The item of a sample's extra_info with the number of tokens of its response, which verl's managers do not pass on.
RESPONSE_TOKENS = "num_response_tokens"
# The item of a sample's extra_info that says whether its prompt ends with an opening think tag.
THINKING_BEGUN = "thinking_begun"
# Its finish reason, its prompt as a chat, the training step, the uid of its prompt and its number in the group.
FINISH_REASON, MESSAGES, STEP, UID, NUMBER = "finish_reason", "messages", "step", "uid", "number"
# The longest time that a completion waits for the others of its group. After that, generating one has failed.
_SIBLING_SECONDS = 3600


class RunRewardManager(RewardManagerBase):
    """Computes the run's reward inside one of verl's managers, which comes after it among the base classes."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **others: Any):
        if config.reward.custom_reward_function.path is None:
            compute_score = RunReward(RunConfig.of(plain_config(config))).compute_score
        super().__init__(config, tokenizer, compute_score, **others)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Score a completion. The last sample of a conversation stands for all of it.

        Args:
            data: verl's batch with the samples of one completion.

        Returns:
            The reward (`reward_score`) and its details (`reward_extra_info`).
        """
        last = data[-1]
        num_tokens = last.batch["attention_mask"][-last.batch["responses"].shape[-1] :].sum()
        prompt_end = self.tokenizer.decode(last.batch["prompts"][-PROMPT_END_TOKENS:])
        step = last.non_tensor_batch.get("global_steps")
        last.non_tensor_batch["extra_info"] |= {
            RESPONSE_TOKENS: int(num_tokens),
            THINKING_BEGUN: opens_thinking(prompt_end),
            FINISH_REASON: finish_reason_of(
                int(num_tokens),
                int(last.batch["responses"][num_tokens - 1]) if num_tokens else None,
                max_tokens=self.config.data.max_response_length,
                end_token=self.tokenizer.eos_token_id,
            ),
            MESSAGES: list(last.non_tensor_batch.get("raw_prompt", ())),
            STEP: None if step is None else int(step),
            UID: last.non_tensor_batch.get("uid"),
            NUMBER: last.non_tensor_batch.get("session_id"),
        }
        result = await super().run_single(data)
        # verl repeats the reward among its details.
        result["reward_extra_info"].pop("score", None)
        return result


class RunReward:
    """The run's reward with the interface of verl's reward functions.

    Args:
        config: The run's configuration. Its scoring processes are divided among verl's reward processes.
    """

    def __init__(self, config: RunConfig):
        _import_own_code(config)
        self._config = config
        self._gatherer: Any = None
        if needs_whole_groups(config.reward.parts):
            # All reward processes share it, because verl sends each completion of a group to a random one.
            gatherer = ray.remote(GroupGatherer).options(
                name="group_gatherer", get_if_exists=True, num_cpus=0, max_concurrency=10**6
            )
            self._gatherer = gatherer.remote(config)
            return
        settings = dict(config.reward.scorer)
        num_workers = math.ceil(settings["num_workers"] / max(1, config.reward.num_workers))
        self._rewards = _RunRewards(config, num_workers=num_workers)

    async def compute_score(
        self, *, data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], **_: Any
    ) -> dict[str, float]:
        """Score a completion.

        Args:
            data_source: The dataset, which the entry also names.
            solution_str: The text of the completion.
            ground_truth: Unused, because the dataset's own scorer judges.
            extra_info: The problem's entry, its dataset and level, and the items that `run_single` adds.

        Returns:
            The reward as `score`, and its details by name.
        """
        completion = FinishedCompletion(solution_str, extra_info[RESPONSE_TOKENS], extra_info[FINISH_REASON])
        if self._gatherer is None:
            [result] = await self._rewards.compute([completion], extra_info)
        else:
            rollout = self._config.rollout
            group_size = rollout.n if extra_info["is_training"] else rollout.val_kwargs.n
            result = await self._gatherer.reward.remote(completion, extra_info, group_size=group_size)
        return {"score": result.reward, **result.details}


def _import_own_code(config: RunConfig) -> None:
    """Import the run's plugins and allow its verifiers, because this process may run on another machine."""
    import_plugins(config.plugins)
    for name, options in config.data.mixture.items():
        if isinstance(options, Mapping) and "verifier" in options:
            allow_verifier(options["verifier"], where=f"dataset {name!r}")


class _RunRewards:
    """The rewards of a run with an own scorer.

    Args:
        config: The run's configuration.
        num_workers: The number of scoring processes.
    """

    def __init__(self, config: RunConfig, *, num_workers: int):
        # Closed when this process ends, because verl never closes a manager.
        self._resources = ExitStack()
        scorer = self._resources.enter_context(Scorer(**dict(config.reward.scorer) | {"num_workers": num_workers}))
        self._rewards = GroupRewards(config.reward.parts, scorer=scorer, max_tokens=config.data.max_response_length)

    async def compute(
        self, completions: Sequence[FinishedCompletion], extra_info: dict[str, Any]
    ) -> list[CompletionReward]:
        """Return the rewards of completions of the same prompt, one of which has `extra_info`."""
        return await self._rewards.compute(
            completions,
            load_entry(extra_info["entry"]),
            dataset=extra_info["dataset"],
            messages=extra_info[MESSAGES],
            level=extra_info["level"],
            step=extra_info[STEP],
            thinking_begun=extra_info[THINKING_BEGUN],
        )


class GroupGatherer:
    """Waits for all completions of a prompt, which verl scores one by one, and computes their rewards together.

    Args:
        config: The run's configuration.
    """

    def __init__(self, config: RunConfig):
        _import_own_code(config)
        self._rewards = _RunRewards(config, num_workers=config.reward.scorer["num_workers"])
        # The completions that have arrived and the futures of their rewards, by number and uid of the prompt.
        self._groups: dict[str, dict[int, tuple[FinishedCompletion, asyncio.Future[CompletionReward]]]] = {}

    async def reward(
        self, completion: FinishedCompletion, extra_info: dict[str, Any], *, group_size: int
    ) -> CompletionReward:
        """Return the reward of a completion, after all completions of its prompt have arrived.

        Args:
            completion: The completion.
            extra_info: The items of its sample, with those that `run_single` adds.
            group_size: The number of completions of the prompt.

        Returns:
            Its reward.

        Raises:
            TimeoutError: Other completions of the prompt did not arrive.
        """
        uid = extra_info[UID]
        group = self._groups.setdefault(uid, {})
        future: asyncio.Future[CompletionReward] = asyncio.get_running_loop().create_future()
        group[extra_info[NUMBER]] = completion, future
        if len(group) == group_size:
            del self._groups[uid]
            ordered = [group[number] for number in sorted(group)]
            try:
                results = await self._rewards.compute([completion for completion, _ in ordered], extra_info)
            except Exception as error:
                for _, waiting in ordered:
                    waiting.set_exception(error)
            else:
                for (_, waiting), result in zip(ordered, results, strict=True):
                    waiting.set_result(result)
        if not (await asyncio.wait({future}, timeout=_SIBLING_SECONDS))[0]:
            raise TimeoutError(
                f"{len(group)} of {group_size} completions of a prompt arrived within {_SIBLING_SECONDS} s, so a "
                "reward for the whole group cannot be computed"
            )
        return future.result()


@cache
def __getattr__(name: str) -> type:
    """Return verl's reward manager of a name with the run's own reward."""
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        manager = get_reward_manager_cls(name)
    except ValueError as error:
        raise AttributeError(str(error)) from error
    return type(f"{manager.__name__}OfRun", (RunRewardManager, manager), {})
