"""Configuration values that determine memory use."""

from dataclasses import dataclass
from math import ceil

from rgtrain.config.run_config import RunConfig


@dataclass(frozen=True)
class TrainingSettings:
    """Configuration values that determine memory use. Sizes are in tokens, or in bytes if the name says so."""

    num_gpus: int
    param_bytes: int
    compute_bytes: int
    lora_rank: int
    checkpointing: bool
    liger: bool
    reshard: bool
    sync_once: bool
    param_offload: bool
    optimizer_offload: bool
    cpu_offload: bool
    has_critic: bool
    mini_batch_size: int
    group_size: int
    prompt_tokens: int
    response_tokens: int
    max_micro_batch_tokens: int
    tensor_parallel: int
    vllm_share: float
    vllm_sleeps: bool
    shares_prompts: bool = True

    @classmethod
    def of(cls, config: RunConfig, *, shares_prompts: bool = True) -> "TrainingSettings":
        """Read the values from a run's configuration.

        Args:
            config: The configuration.
            shares_prompts: Whether a group has one copy of its prompt, which depends on the model.

        Returns:
            The values.
        """
        actor, rollout, fsdp = config.actor, config.rollout, config.actor.fsdp_config
        mixed = fsdp.mixed_precision or {}
        return cls(
            num_gpus=config.trainer.num_gpus,
            param_bytes=_bytes_of(fsdp.model_dtype or "fp32"),
            compute_bytes=_bytes_of(mixed.get("param_dtype", "bf16")),
            lora_rank=config.model.lora_rank,
            checkpointing=config.model.enable_gradient_checkpointing,
            liger=config.model.use_liger,
            reshard=fsdp.reshard_after_forward,
            sync_once=fsdp.use_no_sync_for_gradient_accumulation,
            param_offload=fsdp.param_offload,
            optimizer_offload=fsdp.optimizer_offload,
            cpu_offload=fsdp.offload_policy,
            has_critic=bool(config.critic.enable),
            mini_batch_size=actor.ppo_mini_batch_size,
            group_size=rollout.n,
            prompt_tokens=config.data.max_prompt_length,
            response_tokens=config.data.max_response_length,
            max_micro_batch_tokens=actor.ppo_max_token_len_per_gpu,
            tensor_parallel=rollout.tensor_model_parallel_size,
            vllm_share=rollout.gpu_memory_utilization,
            vllm_sleeps=rollout.free_cache_engine,
            shares_prompts=shares_prompts,
        )

    @property
    def micro_batch_tokens(self) -> int:
        """The maximum number of tokens in a micro-batch.

        This is the configured budget, or the tokens of all sequences on one GPU if there are fewer. Groups stay whole,
        so one GPU can have a group more than others. A shared prompt counts once per group. A micro-batch holds at
        least one sequence of full length.
        """
        of_mini_batch = ceil(self.mini_batch_size / self.num_gpus) * self._group_tokens
        one_sequence = self.prompt_tokens + self.response_tokens
        return max(one_sequence, min(self.max_micro_batch_tokens, of_mini_batch))

    @property
    def micro_batch_responses(self) -> int:
        """The number of these tokens that belong to responses, which are the only ones with logits."""
        return round(self.micro_batch_tokens * self.group_size * self.response_tokens / self._group_tokens)

    @property
    def _group_tokens(self) -> int:
        num_prompts = 1 if self.shares_prompts else self.group_size
        return num_prompts * self.prompt_tokens + self.group_size * self.response_tokens

    @property
    def keys_per_token(self) -> float:
        """The mean number of keys passed to attention per token of a micro-batch.

        A group's prompt is computed once, but its keys are copied for every completion.
        """
        if not self.shares_prompts:
            return 1.0
        prompt, response, group = self.prompt_tokens, self.response_tokens, self.group_size
        return (prompt + group * (prompt + response)) / (prompt + group * response)


def _bytes_of(dtype: str) -> int:
    return 4 if dtype in ("fp32", "float32", "float") else 2
