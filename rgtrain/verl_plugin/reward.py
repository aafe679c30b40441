"""The reward: an answer judged by the project's one scorer, and the named parts around it."""

from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rgtrain.problems import Scorer, combine, extract_answer, load_entry, parse_reward
from rgtrain.problems.rewards import Completion


class ReasoningGymRewardManager(RewardManagerBase):
    """Scores one completion at a time, while others are still generated, inside verl's reward workers."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **kwargs: Any):
        super().__init__(config, tokenizer, compute_score)
        self._parts = parse_reward(OmegaConf.to_container(config.reward.parts, resolve=True))
        self._max_tokens = config.data.max_response_length
        self._scorer = Scorer().__enter__()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """The reward of the last sequence of `data`, and as `reward_extra_info` what it is made of, all numbers."""
        item = data[-1]
        num_tokens = int(item.batch["attention_mask"][-item.batch["responses"].shape[-1] :].sum())
        text = self.tokenizer.decode(item.batch["responses"][:num_tokens], skip_special_tokens=True)
        entry = load_entry(item.non_tensor_batch["extra_info"]["entry"])
        # Judging may take a while and must not hold up this worker's other completions.
        return await self.loop.run_in_executor(None, self._judge, text, entry, num_tokens)

    def _judge(self, text: str, entry: dict[str, Any], num_tokens: int) -> dict[str, Any]:
        answer = extract_answer(text)
        score = self._scorer.score(answer, entry)
        reward, parts = combine(self._parts, Completion(text, score.accuracy, num_tokens, self._max_tokens))
        details = {
            # verl takes the variable "acc" for the core validation metric.
            "acc": score.accuracy,
            "solved": float(score.accuracy == 1),
            "answered": float(answer is not None),
            "score_error": float(score.error is not None),
            "response_length": float(num_tokens),
        }
        details.update({f"reward_{name}": value for name, value in parts.items()})
        return {"reward_score": reward, "reward_extra_info": details}
