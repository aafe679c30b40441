"""Estimate the seconds of a training step that depend on the memory settings, to compare settings with each other.

The constants come from training steps of a 1.5B model (Qwen2.5's shape, 64 prompts x 8 responses of 1,024 tokens) on
H200s of one machine, or are assumptions that say so. Gathering and reducing are counted in full, although FSDP overlaps
part of them with computation.
"""

from dataclasses import replace

from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.duration import GPUS, LARGE_GPU_STEP, GpuRates
from rgtrain.preflight.sizes import ModelSize

# An update of 64 x 8 responses of 256 tokens, in 22 micro-batches of 28 layers, took 4.75 s, in which the GPU computed
# for 2.55 s. Otherwise it waited for Python and launches. A micro-batch takes the longer of both.
_COMPUTE_RATE = 1.54e9 * 64 * (272 + 8 * 256) / 2.55  # parameters x tokens per second of an H200
_LAUNCH_S_PER_LAYER = 4.75 / 22 / 28
# One collective of one FSDP unit without its transfer. With resharding and one reduction per micro-batch, two GPUs took
# 10.2 s for an update of 32 micro-batches with 29 units, and half of the update of one GPU is 7.35 s.
_COLLECTIVE_S = (10.2 - 14.7 / 2) / (32 * 29 * 3)
# Bytes per second that one GPU exchanges with others in a collective, and with the memory of the machine. Assumed from
# data sheets: NVLink of an H100, PCIe 4.0 x16, and a network of 200 Gbit/s per GPU.
_NVLINK_RATE, _PCIE_RATE, _NETWORK_RATE = 200e9, 20e9, 20e9
# Seconds per parameter of gradient clipping and fused AdamW on one core of an Intel Xeon, which each process has.
_CPU_OPTIMIZER_S = 3e-9
# Mapping vLLM's memory again. The processes of a machine wait for each other, and the size hardly matters: on four
# GPUs, the weight sync took 1.67 s with 90.6 GB for each vLLM (1.5B) and with 16.6 GB (7B), and 2.05 s with 90.6 GB
# (7B). If vLLM did not sleep, it took 0.06 to 0.08 s. On one GPU it took 0.19 and 0.06 s (1.5B).
_WAKING_S = 0.19 - 0.06
_WAKING_S_PER_OTHER_GPU = (1.67 - 0.07 - _WAKING_S) / 3
# One decoding step of up to 256 sequences.
_DECODING_S = LARGE_GPU_STEP.generate / LARGE_GPU_STEP.response_tokens


def step_seconds(size: ModelSize, settings: TrainingSettings, *, gpu: GpuRates, kv_cache_tokens: int) -> float:
    """Estimate the seconds of a training step, without the parts that are equal with all settings.

    Args:
        size: The model's size.
        settings: The run's settings.
        gpu: The rates of the GPU.
        kv_cache_tokens: The tokens that vLLM's KV cache holds.

    Returns:
        Seconds, to be compared with those of other settings of the same run.
    """
    num_updates = max(1, settings.batch_size // settings.mini_batch_size)
    update = _update_seconds(size, settings, gpu)
    between = _between_updates_seconds(size, settings)
    return num_updates * update + between + _generation_seconds(settings, kv_cache_tokens)


def _update_seconds(size: ModelSize, settings: TrainingSettings, gpu: GpuRates) -> float:
    num_parts = settings.num_micro_batches
    # Each part of a split group computes the prompt again.
    prompts = (
        max(num_parts, settings.gpu_groups) if settings.shares_prompts else settings.gpu_groups * settings.group_size
    )
    tokens = prompts * settings.prompt_tokens + settings.gpu_groups * settings.group_size * settings.response_tokens
    # Checkpointing repeats the forward pass, a third of all operations. Frozen weights need no gradients.
    share = (4 / 3 if settings.checkpointing else 1.0) - (1 / 3 if settings.lora_rank else 0.0)
    # A token of a mixture of experts uses few of them.
    used = replace(size, stored_intermediate=None).total
    computing = share * used * tokens / (_COMPUTE_RATE * gpu.tflops / GPUS["H200"].tflops)
    launching = num_parts * size.num_layers * _LAUNCH_S_PER_LAYER * (4 / 3 if settings.checkpointing else 1.0)
    return max(computing, launching) + _communication_seconds(size, settings, num_parts, gpu)


def _communication_seconds(size: ModelSize, settings: TrainingSettings, num_parts: int, gpu: GpuRates) -> float:
    """Return the seconds in which parameters are gathered, and gradients reduced, in an update."""
    num_gathers = 2 * num_parts if settings.reshard else 1
    num_reductions = 1 if settings.sync_once else num_parts
    trained = size.lora(settings.lora_rank) if settings.lora_rank else size.total
    link = _NVLINK_RATE if gpu.has_nvlink else _PCIE_RATE
    gpus_of_machine = settings.num_gpus // settings.num_machines
    # A ring is as fast as its slowest link.
    rate = _NETWORK_RATE if settings.shard_size > gpus_of_machine else link
    sent = 1 - 1 / settings.shard_size
    transfers = sent * (num_gathers * settings.compute_bytes * size.total + num_reductions * 4 * trained) / rate
    replicas = settings.num_gpus // settings.shard_size
    # Hybrid sharding also sums the shards of gradients over its copies.
    transfers += num_reductions * 2 * (1 - 1 / replicas) * 4 * trained / settings.shard_size / _NETWORK_RATE
    num_collectives = (size.num_layers + 1) * (num_gathers + num_reductions)
    if not settings.cpu_offload:
        return num_collectives * _COLLECTIVE_S + transfers
    # Shards pass through PCIe for each gathering and each reduction, in fp32.
    shards = (num_gathers * size.total + num_reductions * trained) * 4 / settings.shard_size
    on_cpu = trained / settings.shard_size * _CPU_OPTIMIZER_S
    return num_collectives * _COLLECTIVE_S + transfers + shards / _PCIE_RATE + on_cpu


def _between_updates_seconds(size: ModelSize, settings: TrainingSettings) -> float:
    """Return the seconds in which training and generation exchange the GPU's memory, once per step."""
    trained = size.lora(settings.lora_rank) if settings.lora_rank else size.total
    moved = size.total * settings.param_offload + 2 * trained * settings.optimizer_offload
    offloading = 2 * settings.param_bytes * moved / settings.shard_size / _PCIE_RATE
    num_others = settings.num_gpus // settings.num_machines - 1
    waking = _WAKING_S + num_others * _WAKING_S_PER_OTHER_GPU
    return offloading + settings.vllm_sleeps * waking


def _generation_seconds(settings: TrainingSettings, kv_cache_tokens: int) -> float:
    """Return the seconds of generation, which grow if the KV cache holds only part of the sequences."""
    needed = settings.engine_sequences * settings.sequence_tokens
    return settings.response_tokens * _DECODING_S * max(1.0, needed / max(1, kv_cache_tokens))
