"""Configuration values that determine memory use."""

from dataclasses import dataclass

from rgtrain.config.run_config import RunConfig


@dataclass(frozen=True)
class TrainingSettings:
    """Configuration values that determine memory use. Sizes are in tokens, or in bytes if the name says so.

    Attributes:
        num_gpus: GPUs of all machines.
        batch_size: Prompts per step.
        mini_batch_size: Prompts per update.
        fsdp_size: GPUs that share one copy of the states. -1 means all.
        num_machines: Machines with an equal number of GPUs each.
        max_sequences: Sequences that one engine generates at a time.
        holds_all_logits: Whether training holds the logits of all tokens, as verl's own engine does.
    """

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
    batch_size: int
    mini_batch_size: int
    group_size: int
    prompt_tokens: int
    response_tokens: int
    max_micro_batch_tokens: int
    tensor_parallel: int
    vllm_share: float
    vllm_sleeps: bool
    shares_prompts: bool = True
    fsdp_size: int = -1
    num_machines: int = 1
    max_sequences: int = 1024
    holds_all_logits: bool = False

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
            batch_size=config.data.train_batch_size,
            mini_batch_size=actor.ppo_mini_batch_size,
            group_size=rollout.n,
            prompt_tokens=config.data.max_prompt_length,
            response_tokens=config.data.max_response_length,
            max_micro_batch_tokens=actor.ppo_max_token_len_per_gpu,
            tensor_parallel=rollout.tensor_model_parallel_size,
            vllm_share=rollout.gpu_memory_utilization,
            vllm_sleeps=rollout.free_cache_engine,
            # verl's own engine repeats each prompt.
            shares_prompts=shares_prompts and config.engine == "fast",
            fsdp_size=fsdp.fsdp_size,
            num_machines=config.trainer.nnodes,
            max_sequences=rollout.max_num_seqs,
            holds_all_logits=config.engine != "fast",
        )

    @property
    def shard_size(self) -> int:
        """The number of GPUs that share one copy of weights, gradients and optimizer states."""
        return self.fsdp_size if 0 < self.fsdp_size < self.num_gpus else self.num_gpus

    @property
    def sequence_tokens(self) -> int:
        """The maximum number of tokens of a prompt and its response."""
        return self.prompt_tokens + self.response_tokens

    @property
    def group_tokens(self) -> int:
        """The maximum number of tokens of a prompt and all its responses."""
        num_prompts = 1 if self.shares_prompts else self.group_size
        return num_prompts * self.prompt_tokens + self.group_size * self.response_tokens

    @property
    def gpu_groups(self) -> int:
        """The number of groups of a mini-batch on one GPU, rounded up."""
        return -(-self.mini_batch_size // self.num_gpus)

    @property
    def engine_sequences(self) -> int:
        """The number of sequences that one vLLM engine generates at a time, at least 1."""
        of_engine = self.batch_size * self.group_size * self.tensor_parallel // self.num_gpus
        return max(1, min(self.max_sequences, of_engine))

    @property
    def micro_batch_tokens(self) -> int:
        """The maximum number of tokens in a micro-batch.

        This is the configured budget, or the tokens of all sequences on one GPU if there are fewer. Groups stay whole,
        so one GPU can have a group more than others. A shared prompt counts once per group. A micro-batch holds at
        least one sequence of full length.
        """
        of_mini_batch = self.gpu_groups * self.group_tokens
        return max(self.sequence_tokens, min(self.max_micro_batch_tokens, of_mini_batch))

    @property
    def num_micro_batches(self) -> int:
        """The number of micro-batches of an update on each GPU if all sequences have their full length.

        Groups that share their prompt stay whole unless one alone exceeds the token budget.
        """
        budget = self.max_micro_batch_tokens
        if not self.shares_prompts:
            return -(-self.gpu_groups * self.group_size // max(1, budget // self.sequence_tokens))
        if budget >= self.group_tokens:
            return -(-self.gpu_groups // (budget // self.group_tokens))
        num_responses = max(1, (budget - self.prompt_tokens) // self.response_tokens)
        return self.gpu_groups * -(-self.group_size // num_responses)

    @property
    def micro_batch_responses(self) -> int:
        """The number of these tokens that belong to responses, which are the only ones with logits."""
        return round(self.micro_batch_tokens * self.group_size * self.response_tokens / self.group_tokens)

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
