"""The reward: an answer judged by the project's one scorer, and the named parts around it."""

import asyncio
from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rgtrain.problems import Scorer, combine, extract_answer, load_entry, parse_reward
from rgtrain.problems.rewards import Completion
from rgtrain.problems.scoring import FAILURES, Score


class ReasoningGymRewardManager(RewardManagerBase):
    """Scores one completion at a time, while others are still generated, inside verl's reward workers."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **kwargs: Any):
        super().__init__(config, tokenizer, compute_score)
        reward = OmegaConf.to_container(config.reward, resolve=True)
        self._parts = parse_reward(reward["parts"])
        self._max_tokens = config.data.max_response_length
        # Ends with this process: nobody tells a reward manager that it is done.
        self._scorer = Scorer(**reward["scorer"]).__enter__()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """The reward of the last sequence of `data`, and as `reward_extra_info` what it is made of, all numbers."""
        item = data[-1]
        num_tokens = int(item.batch["attention_mask"][-item.batch["responses"].shape[-1] :].sum())
        text = self.tokenizer.decode(item.batch["responses"][:num_tokens], skip_special_tokens=True)
        entry = load_entry(item.non_tensor_batch["extra_info"]["entry"])
        answer = extract_answer(text)
        score = await asyncio.wrap_future(self._scorer.submit(answer, entry))
        reward, parts = combine(self._parts, Completion(text, score.accuracy, num_tokens, self._max_tokens))
        details = {
            # verl takes the variable "acc" for the core validation metric.
            "acc": score.accuracy,
            "solved": float(score.accuracy == 1),
            "answered": float(answer is not None),
            "response_length": float(num_tokens),
            "score_seconds": score.seconds,
        }
        details.update({f"reward_{name}": value for name, value in parts.items()})
        details.update(failure_counts(score))
        return {"reward_score": reward, "reward_extra_info": details}


def failure_counts(score: Score) -> dict[str, float]:
    """1 for how judging failed, 0 for every other way: `num_timeout`, `num_crash`, ..."""
    return {f"num_{failure.replace(' ', '_')}": float(score.failure == failure) for failure in FAILURES}
