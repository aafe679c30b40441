"""verl's reward managers with the run's own reward, which the confined scorer computes.

verl looks a manager up by `reward.reward_manager.name` in this module, which `reward.reward_manager.module.path` names.
Every manager that verl registers is found under its own name, for example `naive` or `dapo`. It scores with the parts
of `reward.parts`, unless `reward.custom_reward_function` names another function.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.problems import Scorer, load_entry
from rgtrain.problems.answers import PROMPT_END_TOKENS, opens_thinking
from rgtrain.problems.group_rewards import FinishedCompletion, GroupRewards, finish_reason_of
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring.judges import allow_verifier

# The item of a sample's extra_info with the number of tokens of its response, which verl's managers do not pass on.
RESPONSE_TOKENS = "num_response_tokens"
# The item of a sample's extra_info that says whether its prompt ends with an opening think tag.
THINKING_BEGUN = "thinking_begun"
# The items with its finish reason, its prompt as a chat and its training step.
FINISH_REASON, MESSAGES, STEP = "finish_reason", "messages", "step"


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
            STEP: last.non_tensor_batch.get("global_steps"),
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
        # This process may run on another machine.
        import_plugins(config.plugins)
        for name, options in config.data.mixture.items():
            if isinstance(options, Mapping) and "verifier" in options:
                allow_verifier(options["verifier"], where=f"dataset {name!r}")
        settings = dict(config.reward.scorer)
        num_workers = math.ceil(settings["num_workers"] / max(1, config.reward.num_workers))
        # Closed when this process ends, because verl never closes a manager.
        self._resources = ExitStack()
        scorer = self._resources.enter_context(Scorer(**settings | {"num_workers": num_workers}))
        self._rewards = GroupRewards(config.reward.parts, scorer=scorer, max_tokens=config.data.max_response_length)

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
        [result] = await self._rewards.compute(
            [completion],
            load_entry(extra_info["entry"]),
            dataset=extra_info["dataset"],
            messages=extra_info[MESSAGES],
            level=extra_info["level"],
            step=extra_info[STEP],
            thinking_begun=extra_info[THINKING_BEGUN],
        )
        return {"score": result.reward, **result.details}


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
