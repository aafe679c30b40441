"""Suggest configuration changes that make a run fit into GPU memory."""

from dataclasses import replace
from itertools import combinations

from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.memory import VLLM_WORKING_BYTES, MemoryEstimate, estimate
from rgtrain.preflight.sizes import ModelSize

_ROLLOUT = "actor_rollout_ref.rollout"
_ACTOR = "actor_rollout_ref.actor"
_Change = tuple[TrainingSettings, str]


def advice(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> list[str]:
    """Return the smallest set of changes that makes the run fit, preferring those that slow it down least.

    Args:
        size: The model's size.
        settings: The run's settings.
        gpu_bytes: The memory of one GPU.

    Returns:
        Overrides for the command line. If no combination fits, a single line that suggests other hardware or models.
    """
    for count in range(1, len(_CHANGES) + 1):
        for changes in combinations(_CHANGES, count):
            changed, overrides = settings, []
            for change in changes:
                current = estimate(size, changed, gpu_bytes=gpu_bytes)
                changed, override = change(changed, current, gpu_bytes)
                overrides.append(override)
            if estimate(size, changed, gpu_bytes=gpu_bytes).peak <= gpu_bytes:
                return overrides
    return ["more GPUs, larger GPUs (hardware=CHOICE) or a smaller model (model=CHOICE)"]


def _checkpoint_activations(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    key = "actor_rollout_ref.model.enable_gradient_checkpointing=true"
    return replace(settings, checkpointing=True), key


def _let_vllm_sleep(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    keys = f"{_ROLLOUT}.free_cache_engine=true {_ROLLOUT}.enable_sleep_mode=true"
    return replace(settings, vllm_sleeps=True), keys


def _reduce_per_micro_batch(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    key = f"{_ACTOR}.fsdp_config.use_no_sync_for_gradient_accumulation=false"
    return replace(settings, sync_once=False), key


def _shard_over_all_gpus(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    return replace(settings, fsdp_size=-1), f"{_ACTOR}.fsdp_config.fsdp_size=-1"


def _reshard(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    fsdp = f"{_ACTOR}.fsdp_config"
    keys = f"{fsdp}.reshard_after_forward=true {fsdp}.use_no_sync_for_gradient_accumulation=false"
    return replace(settings, reshard=True, sync_once=False), keys


def _smaller_micro_batches(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    # Halve the micro-batch until its activations and logits fit into the memory that the rest leaves free.
    growing = current.parts["activations"] + current.parts["logits"]
    tokens = settings.micro_batch_tokens
    while growing > 0 and current.training - growing * (1 - tokens / settings.micro_batch_tokens) > gpu_bytes:
        if tokens // 2 < settings.prompt_tokens + settings.response_tokens:
            break
        tokens //= 2
    return replace(settings, max_micro_batch_tokens=tokens), f"{_ACTOR}.ppo_max_token_len_per_gpu={tokens}"


def _smaller_vllm(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    excess = current.peak if not settings.vllm_sleeps else current.generating
    share = settings.vllm_share - max(0.0, excess - gpu_bytes) / gpu_bytes
    least = (current.parts["vLLM's weights"] + 2 * VLLM_WORKING_BYTES) / gpu_bytes
    share = max(least, int(share * 20) / 20)
    return replace(settings, vllm_share=share), f"{_ROLLOUT}.gpu_memory_utilization={share:.2f}"


def _offload_states(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    keys = f"{_ACTOR}.fsdp_config.param_offload=true {_ACTOR}.fsdp_config.optimizer_offload=true"
    return replace(settings, param_offload=True, optimizer_offload=True), keys


def _offload_all(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    keys = f"{_ACTOR}.fsdp_config.offload_policy=true"
    return replace(settings, cpu_offload=True), keys


def _train_adapters(settings: TrainingSettings, current: MemoryEstimate, gpu_bytes: float) -> _Change:
    return replace(settings, lora_rank=settings.lora_rank or 32), "model=[MODEL,lora]"


# Ordered by cost: the first ones take little time, the last one changes the training itself.
_CHANGES = (
    _let_vllm_sleep,
    _reduce_per_micro_batch,
    _checkpoint_activations,
    _reshard,
    _shard_over_all_gpus,
    _smaller_vllm,
    _smaller_micro_batches,
    _offload_states,
    _offload_all,
    _train_adapters,
)
