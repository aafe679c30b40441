"""Advise which keys to change after a run ran out of GPU memory."""

from rgtrain.config.run_config import RunConfig


def memory_hint(failure: str, config: RunConfig) -> str | None:
    """Return a line that names the keys to change and their current values.

    Args:
        failure: The traceback of the failure as text.
        config: The run's configuration.

    Returns:
        The line, or None if the run failed for another reason than GPU memory.
    """
    no_cache = "No available memory for the cache blocks" in failure
    if not no_cache and "out of memory" not in failure.lower():
        return None
    actor, rollout = config.actor, config.rollout
    if no_cache or "vllm_rollout.py" in failure:
        return (
            f"vLLM ran out of memory; change actor_rollout_ref.rollout.gpu_memory_utilization "
            f"(now {rollout.gpu_memory_utilization}) or lower actor_rollout_ref.rollout.max_num_seqs "
            f"(now {rollout.max_num_seqs})"
        )
    tokens = actor.ppo_max_token_len_per_gpu
    hints = [f"lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu (now {tokens}, try {tokens // 2})"]
    if not config.model.enable_gradient_checkpointing:
        hints.append("set actor_rollout_ref.model.enable_gradient_checkpointing=true")
    if not rollout.free_cache_engine:
        hints.append(
            "free vLLM's memory during updates with actor_rollout_ref.rollout.free_cache_engine=true and "
            "actor_rollout_ref.rollout.enable_sleep_mode=true"
        )
    return f"training ran out of memory; {', or '.join(hints)}"
