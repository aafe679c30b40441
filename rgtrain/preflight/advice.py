"""What to change in a configuration so that it fits into the GPUs."""

from dataclasses import replace
from itertools import combinations

from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.memory import VLLM_WORKING_BYTES, MemoryEstimate, estimate
from rgtrain.preflight.sizes import ModelSize

_ROLLOUT = "actor_rollout_ref.rollout"
_ACTOR = "actor_rollout_ref.actor"
_Change = tuple[TrainingSettings, str]


def advice(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> list[str]:
    """The fewest keys to change until the run fits, those that cost least first; what else to do where none do."""
    for count in range(1, len(_CHANGES) + 1):
        for changes in combinations(_CHANGES, count):
            changed, words = settings, []
            for change in changes:
                now = estimate(size, changed, gpu_bytes=gpu_bytes)
                changed, said = change(changed, now, gpu_bytes)
                words.append(said)
            if estimate(size, changed, gpu_bytes=gpu_bytes).peak <= gpu_bytes:
                return words
    return ["take more GPUs, larger ones or a smaller model: hardware=... model=..."]


def _checkpoint(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    key = "actor_rollout_ref.model.enable_gradient_checkpointing=true"
    return replace(settings, checkpointing=True), key


def _leave(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    keys = f"{_ROLLOUT}.free_cache_engine=true {_ROLLOUT}.enable_sleep_mode=true"
    return replace(settings, vllm_leaves=True), keys


def _reshard(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    fsdp = f"{_ACTOR}.fsdp_config"
    keys = f"{fsdp}.reshard_after_forward=true {fsdp}.use_no_sync_for_gradient_accumulation=false"
    return replace(settings, reshard=True, sync_once=False), keys


def _smaller_micro_batches(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    # As many halvings as bring the part that grows with tokens below what is left for it.
    growing = now.parts["activations"] + now.parts["logits"]
    tokens = settings.micro_batch_tokens
    while growing > 0 and now.training - growing * (1 - tokens / settings.micro_batch_tokens) > gpu_bytes:
        if tokens // 2 < settings.prompt_tokens + settings.response_tokens:
            break
        tokens //= 2
    return replace(settings, max_micro_batch_tokens=tokens), f"{_ACTOR}.ppo_max_token_len_per_gpu={tokens}"


def _smaller_vllm(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    excess = now.peak if not settings.vllm_leaves else now.generating
    share = settings.vllm_share - max(0.0, excess - gpu_bytes) / gpu_bytes
    least = (now.parts["vLLM's weights"] + 2 * VLLM_WORKING_BYTES) / gpu_bytes
    share = max(least, int(share * 20) / 20)
    return replace(settings, vllm_share=share), f"{_ROLLOUT}.gpu_memory_utilization={share:.2f}"


def _offload_states(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    keys = f"{_ACTOR}.fsdp_config.param_offload=true {_ACTOR}.fsdp_config.optimizer_offload=true"
    return replace(settings, param_offload=True, optimizer_offload=True), keys


def _offload_all(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    keys = f"{_ACTOR}.fsdp_config.offload_policy=true"
    return replace(settings, cpu_offload=True), keys


def _adapters(settings: TrainingSettings, now: MemoryEstimate, gpu_bytes: float) -> _Change:
    return replace(settings, lora_rank=settings.lora_rank or 32), "model=[MODEL,lora]"


# From what costs little time to what changes the training itself.
_CHANGES = (
    _leave,
    _checkpoint,
    _reshard,
    _smaller_vllm,
    _smaller_micro_batches,
    _offload_states,
    _offload_all,
    _adapters,
)
