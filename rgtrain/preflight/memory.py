"""Estimate the GPU memory of a run from the model's shape and the configuration.

Activations are counted tensor by tensor, as transformers' decoders and the project's output layer keep them for the
backward pass. A test compares the result with the real modules. The constants for CUDA, NCCL and vLLM's graphs were
measured with benchmarks/memory.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.sizes import ModelSize

GB = 10**9
# The largest share of a GPU's memory that the output layer uses for logits (rgtrain/training/update/log_prob_head.py).
# Their gradient overwrites them.
_LOGITS_SHARE = 1 / 16
# Memory in use on an idle GPU (0.5 GB on an H100), the CUDA context, cuBLAS workspaces and unused memory that the
# allocator holds. NCCL's buffers exist only with several GPUs.
_CUDA_BYTES = 1.7 * GB
_NCCL_BYTES = 0.6 * GB
# vLLM's CUDA graphs and workspaces, which stay allocated while it sleeps.
_VLLM_RESIDENT_BYTES = 0.6 * GB
# The part of its share that vLLM reserves for activations before it sizes its KV cache.
VLLM_WORKING_BYTES = 1.5 * GB
# On the CPU: the logits held at a time (rgtrain/training/update/log_prob_head.py), vLLM's KV cache
# (VLLM_CPU_KVCACHE_SPACE), and all processes without a model (trainer, worker, Ray and scorers).
_HOST_LOGITS_BYTES = 1 << 30
_HOST_CACHE_BYTES = 1 << 30
_HOST_PROCESSES_BYTES = 3 * GB


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU: the peaks of the training and the generation phase, and their parts."""

    parts: Mapping[str, float]
    training: float
    generating: float
    kv_cache_tokens: int

    @property
    def peak(self) -> float:
        """The larger of the two peaks in bytes."""
        return max(self.training, self.generating)


def estimate(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> MemoryEstimate:
    """Estimate the memory use of a run on each GPU, assuming that every response has the maximum length.

    Args:
        size: The model's size.
        settings: The run's settings.
        gpu_bytes: The memory of one GPU.

    Returns:
        The estimate in bytes.
    """
    states = model_states(size, settings)
    weights = 2 * size.total / settings.tensor_parallel
    # vLLM's configured share, or its minimum if that is larger.
    vllm = max(settings.vllm_share * gpu_bytes, weights + VLLM_WORKING_BYTES)
    runtime = _CUDA_BYTES + (_NCCL_BYTES if settings.num_gpus > 1 else 0)
    working = {
        "gathered layers": gathered_bytes(size, settings),
        "activations": activation_bytes(size, settings),
        "logits": logits_bytes(size, settings, gpu_bytes=gpu_bytes),
    }
    training = runtime + sum(states.values()) + gathered_bytes(size, settings)
    training += working_peak(size, settings, gpu_bytes=gpu_bytes)
    training += _VLLM_RESIDENT_BYTES + (0 if settings.vllm_sleeps else vllm)
    resident = 0.0 if settings.param_offload else states["weights"]
    resident += 0.0 if settings.optimizer_offload else states["optimizer"]
    cache = vllm - weights - VLLM_WORKING_BYTES
    per_token = size.kv_cache(tensor_parallel=settings.tensor_parallel)
    return MemoryEstimate(
        parts={**states, **working, "vLLM": vllm, "vLLM's weights": weights, "KV cache": max(0.0, cache)}
        | {"CUDA, NCCL": runtime},
        training=training,
        generating=runtime + resident + vllm + _VLLM_RESIDENT_BYTES,
        kv_cache_tokens=max(0, int(cache / per_token)),
    )


def model_states(size: ModelSize, settings: TrainingSettings) -> dict[str, float]:
    """Return the bytes of weights, gradients and the optimizer's two moments on each GPU, including the critic's.

    FSDP reduces gradients on a separate stream that doesn't share memory with others. With `sync_once`, unsharded
    gradients exist until then, so unsharded and sharded gradients both count. With hybrid sharding, each group of
    `shard_size` GPUs holds a whole copy of the states.

    Args:
        size: The model's size.
        settings: The run's settings.

    Returns:
        Bytes of `weights`, `gradients` and `optimizer`.
    """
    adapters = size.lora(settings.lora_rank) if settings.lora_rank else 0
    models = 2 if settings.has_critic else 1
    weights, trained = models * size.total + adapters, (adapters or size.total) + (models - 1) * size.total
    share = settings.param_bytes / settings.shard_size * (not settings.cpu_offload)
    # With one reduction per update, unsharded gradients are kept in fp32 until then. Only one model's are counted,
    # because critic and actor are updated in turn.
    unsharded = 4 * (size.total if settings.has_critic else adapters or size.total) * settings.sync_once
    return {"weights": weights * share, "gradients": unsharded + trained * share, "optimizer": 2 * trained * share}


def offloaded_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Return the bytes of states that all GPUs of a machine offload to its memory.

    With hybrid sharding, a machine offloads several copies of the states if it has several groups of `shard_size` GPUs.
    """
    of_gpu = model_states(size, replace(settings, cpu_offload=False, sync_once=False))
    num_gpus = settings.num_gpus / settings.num_machines
    if settings.cpu_offload:
        return num_gpus * sum(of_gpu.values())
    return num_gpus * (of_gpu["weights"] * settings.param_offload + of_gpu["optimizer"] * settings.optimizer_offload)


def gathered_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Return the bytes of gathered parameters and their gradients.

    With resharding, two layers are gathered at a time, otherwise all are. An embedding that is tied to the output layer
    stays gathered. Otherwise, both are separate groups, and resharding keeps one of them. FSDP gathers on a
    separate stream into buffers that hold the largest group and this GPU's shard of it. Trained parameters also have an
    unsharded gradient, and an fp32 copy of it while it is reduced over GPUs, again on a separate stream.

    Args:
        size: The model's size.
        settings: The run's settings.

    Returns:
        Bytes on each GPU.
    """
    outside = size.outside_layers if size.tied else size.outside_layers / 2
    held = 2 * size.layer + outside if settings.reshard else size.total
    buffers = (1 + 1 / settings.shard_size) * max(outside, 2 * size.layer)
    weights = settings.compute_bytes * (held + buffers)
    if settings.lora_rank:
        return weights
    return weights + settings.compute_bytes * (outside + 2 * size.layer) + 4 * max(outside, 2 * size.layer)


def token_activation_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Return the bytes per token that one layer's norms, attention, MLP and adapters keep for the backward pass."""
    # The inputs and output of attention. Every completion of a group has a copy of the prompt's keys and values.
    attention = 2 * size.query_width + 2 * size.key_width * settings.keys_per_token
    kept = _norms(size, settings) + attention + 7 * settings.lora_rank
    # liger recomputes the activation of the MLP's gate.
    kept += (3 if settings.liger else 4) * size.intermediate
    return settings.compute_bytes * kept


def _norms(size: ModelSize, settings: TrainingSettings) -> int:
    """Return the values per token that one layer's norms keep; Qwen3 also has norms on queries and keys."""
    hidden, heads = size.hidden, (size.query_width + size.key_width) * size.has_qk_norm
    if settings.liger:
        # Each norm keeps its input and its output.
        return 4 * hidden + heads
    # Each norm keeps its input in fp32 (twice the bytes) and its output. A trained norm also keeps its normalised
    # input.
    kept = 6 * hidden + 2 * heads
    return kept if settings.lora_rank else kept + 2 * hidden + heads


def activation_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Return the bytes of a micro-batch's activations.

    Without checkpointing, all layers keep theirs. With it, all layers keep their inputs, and one layer at a time has
    recomputed activations.
    """
    tokens, one_layer = settings.micro_batch_tokens, token_activation_bytes(size, settings)
    if not settings.checkpointing:
        return tokens * size.num_layers * one_layer
    return tokens * (size.num_layers * settings.compute_bytes * size.hidden + one_layer)


def logits_bytes(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> float:
    """Return the bytes of the logits that are held at a time.

    verl's own engine holds those of all tokens, their log-softmax and their gradient.
    """
    if settings.holds_all_logits:
        return 3 * settings.compute_bytes * settings.micro_batch_tokens * size.vocab
    return min(settings.compute_bytes * settings.micro_batch_responses * size.vocab, _LOGITS_SHARE * gpu_bytes)


def working_peak(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> float:
    """Return the peak bytes of activations together with temporary tensors.

    The peak is either at the start of the backward pass, with the logits, or later, with the gradients of one layer.

    Args:
        size: The model's size.
        settings: The run's settings.
        gpu_bytes: The memory of one GPU.

    Returns:
        Bytes on each GPU.
    """
    value = settings.micro_batch_tokens * settings.compute_bytes
    # liger's gradients overwrite the tensors that they are computed from.
    layer = (size.intermediate + 2 * size.hidden) if settings.liger else (2 * size.intermediate + 2.5 * size.hidden)
    last_norm = (4 if settings.liger else 9) * size.hidden
    at_the_end = value * last_norm + logits_bytes(size, settings, gpu_bytes=gpu_bytes)
    kept = activation_bytes(size, settings)
    if settings.checkpointing:
        inputs = kept - settings.micro_batch_tokens * token_activation_bytes(size, settings)
        return max(inputs + at_the_end, kept + value * layer)
    return kept + max(at_the_end, value * layer)


def host_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Estimate the bytes that all processes of a CPU run use, assuming that every response has the maximum length."""
    # fp32 logits of the rows that the output layer holds at a time. Their softmax and gradient have the same size.
    logits = min(4 * settings.micro_batch_responses * size.vocab, _HOST_LOGITS_BYTES)
    # vLLM keeps a second copy of its weights, repacked for its matrix products.
    vllm = 2 * 2 * size.total + _HOST_CACHE_BYTES
    states = sum(model_states(size, settings).values()) + settings.compute_bytes * size.total
    return states + activation_bytes(size, settings) + 3 * logits + vllm + _HOST_PROCESSES_BYTES
