"""GPU memory that a run will take, reckoned from the model's shape and the configuration.

Activations are counted tensor by tensor, as transformers' decoders and the project's output layer keep them for the
backward pass; a test counts those of the real modules. What CUDA, NCCL and vLLM's graphs take beside is measured by
benchmarks/memory.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.sizes import ModelSize

GB = 10**9
# Logits that the output layer holds at a time, of a GPU's memory (rgtrain/training/update/log_prob_head.py). Their
# gradient takes their place.
_LOGITS_SHARE = 1 / 16
# What an idle GPU has in use (0.5 GB of an H100), CUDA's context, cuBLAS's workspaces and what the allocator holds
# unused; NCCL's buffers where there are several GPUs.
_CUDA_BYTES = 1.7 * GB
_NCCL_BYTES = 0.6 * GB
# vLLM's CUDA graphs and workspaces, which stay while it sleeps.
_VLLM_RESIDENT_BYTES = 0.6 * GB
# What vLLM keeps of its share for activations before it lays out its cache.
VLLM_WORKING_BYTES = 1.5 * GB
# On the CPU: logits held at a time (rgtrain/training/update/log_prob_head.py), vLLM's cache (VLLM_CPU_KVCACHE_SPACE),
# and the trainer, the worker, Ray and the scorers without a model.
_HOST_LOGITS_BYTES = 1 << 30
_HOST_CACHE_BYTES = 1 << 30
_HOST_PROCESSES_BYTES = 3 * GB


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU: the peaks of both phases, and what they are made of."""

    parts: Mapping[str, float]
    training: float
    generating: float
    kv_cache_tokens: int

    @property
    def peak(self) -> float:
        return max(self.training, self.generating)


def estimate(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> MemoryEstimate:
    """What a run takes on each GPU of `gpu_bytes`, with every response as long as it may be."""
    states = model_states(size, settings)
    weights = 2 * size.total / settings.tensor_parallel
    # Its share, or what it can't do without.
    vllm = max(settings.vllm_share * gpu_bytes, weights + VLLM_WORKING_BYTES)
    outside = _CUDA_BYTES + (_NCCL_BYTES if settings.num_gpus > 1 else 0)
    working = {
        "gathered layers": gathered(size, settings),
        "activations": activations(size, settings),
        "logits": logits(size, settings, gpu_bytes=gpu_bytes),
    }
    training = outside + sum(states.values()) + gathered(size, settings)
    training += working_peak(size, settings, gpu_bytes=gpu_bytes)
    training += _VLLM_RESIDENT_BYTES if settings.vllm_leaves else vllm
    resident = 0.0 if settings.param_offload else states["weights"]
    resident += 0.0 if settings.optimizer_offload else states["optimizer"]
    cache = vllm - weights - VLLM_WORKING_BYTES
    per_token = size.kv_cache(tensor_parallel=settings.tensor_parallel)
    return MemoryEstimate(
        parts={**states, **working, "vLLM": vllm, "vLLM's weights": weights, "KV cache": max(0.0, cache)}
        | {"CUDA, NCCL": outside},
        training=training,
        generating=outside + resident + vllm + _VLLM_RESIDENT_BYTES,
        kv_cache_tokens=max(0, int(cache / per_token)),
    )


def model_states(size: ModelSize, settings: TrainingSettings) -> dict[str, float]:
    """Bytes of weights, gradients and the optimizer's two moments on each GPU; a critic has as much again.

    FSDP sums gradients over GPUs on a stream of its own, which shares no memory with others: where they are whole until
    then, both forms count.
    """
    adapters = size.lora(settings.lora_rank) if settings.lora_rank else 0
    models = 2 if settings.has_critic else 1
    weights, trained = models * size.total + adapters, (adapters or size.total) + (models - 1) * size.total
    share = settings.param_bytes / settings.num_gpus * (not settings.cpu_offload)
    # Summed over GPUs once an update, they are whole in fp32 until then; a critic and an actor are updated in turn.
    whole = 4 * (size.total if settings.has_critic else adapters or size.total) * settings.sync_once
    return {"weights": weights * share, "gradients": whole + trained * share, "optimizer": 2 * trained * share}


def gathered(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes of parameters in the type computed in: two layers (or all), and what lies outside layers all the time.

    They are gathered into buffers of another stream, as long as the largest of them and this GPU's share of it. Where
    they are trained, their whole gradients too, and once more in fp32 while they are summed over GPUs.
    """
    layers = 2 * size.layer if settings.reshard else size.num_layers * size.layer
    buffers = (1 + 1 / settings.num_gpus) * max(size.outside_layers, 2 * size.layer)
    weights = settings.compute_bytes * (layers + size.outside_layers + buffers)
    if settings.lora_rank:
        return weights
    return weights + settings.compute_bytes * size.outside_layers + (settings.compute_bytes + 4) * 2 * size.layer


def activation_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes that one layer keeps of one token: what its norms, attention, MLP and adapters read again."""
    # Attention's inputs and output; each completion has its prompt's keys and values again.
    attention = 2 * size.query_width + 2 * size.key_width * settings.keys_per_token
    kept = _norms(size, settings) + attention + 7 * settings.lora_rank
    # liger computes the activation of the MLP's gate anew.
    kept += (3 if settings.liger else 4) * size.intermediate
    return settings.compute_bytes * kept


def _norms(size: ModelSize, settings: TrainingSettings) -> int:
    """Values that one layer's norms keep of one token; Qwen3 has them on queries and keys too."""
    hidden, heads = size.hidden, (size.query_width + size.key_width) * size.has_qk_norm
    if settings.liger:
        # Its input and its output.
        return 4 * hidden + heads
    # Its input in fp32, twice the bytes, and its output; where it is trained, its result before the weight too.
    kept = 6 * hidden + 2 * heads
    return kept if settings.lora_rank else kept + 2 * hidden + heads


def activations(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes of a micro-batch's activations: all layers', or their inputs and one layer's where they are recomputed."""
    tokens, one_layer = settings.micro_batch_tokens, activation_bytes(size, settings)
    if not settings.checkpointing:
        return tokens * size.num_layers * one_layer
    return tokens * (size.num_layers * settings.compute_bytes * size.hidden + one_layer)


def logits(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> float:
    """Bytes of the logits that are held at a time."""
    return min(settings.compute_bytes * settings.micro_batch_responses * size.vocab, _LOGITS_SHARE * gpu_bytes)


def working_peak(size: ModelSize, settings: TrainingSettings, *, gpu_bytes: float) -> float:
    """Activations with logits at the backward pass's begin, or with one layer's gradients later."""
    value = settings.micro_batch_tokens * settings.compute_bytes
    # liger's gradients take the place of what they are computed from.
    layer = (size.intermediate + 2 * size.hidden) if settings.liger else (2 * size.intermediate + 2.5 * size.hidden)
    last_norm = (4 if settings.liger else 9) * size.hidden
    at_the_end = value * last_norm + logits(size, settings, gpu_bytes=gpu_bytes)
    kept = activations(size, settings)
    if settings.checkpointing:
        inputs = kept - settings.micro_batch_tokens * activation_bytes(size, settings)
        return max(inputs + at_the_end, kept + value * layer)
    return kept + max(at_the_end, value * layer)


def host_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Return about how many bytes all processes of a run on the CPU take, with every response at full length."""
    # Logits, their softmax and their gradient, in fp32, of as many rows as the output layer holds at a time.
    logits = min(4 * settings.micro_batch_responses * size.vocab, _HOST_LOGITS_BYTES)
    # vLLM's weights, and once more in the order that its matrix products read them in; and its cache.
    vllm = 2 * 2 * size.total + _HOST_CACHE_BYTES
    states = sum(model_states(size, settings).values()) + settings.compute_bytes * size.total
    return states + activations(size, settings) + 3 * logits + vllm + _HOST_PROCESSES_BYTES
