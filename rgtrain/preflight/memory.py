"""GPU memory that a run will take, reckoned from the model's shape and the configuration.

Activations are counted tensor by tensor, as transformers' decoders and the project's output layer keep them for the
backward pass; a test counts those of the real modules. What CUDA, NCCL and vLLM's graphs take beside is measured by
benchmarks/memory.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rgtrain.preflight.settings import TrainingSettings
from rgtrain.preflight.sizes import ModelSize

GB = 10**9
# Logits in fp32 that the output layer holds at a time (rgtrain/verl_plugin/log_prob_head.py; a test compares).
LOGIT_CHUNK_BYTES = 1 << 30
# Forward and backward of a logit in that layer: bf16 and fp32 copies, the normaliser's gradient and their sums.
_BYTES_PER_LOGIT = 20
# CUDA's context, cuBLAS's workspaces and what the allocator holds unused; NCCL's buffers where there are several GPUs.
_CUDA_BYTES = 1.2 * GB
_NCCL_BYTES = 0.6 * GB
# vLLM's CUDA graphs and workspaces, which stay while it sleeps.
_VLLM_RESIDENT_BYTES = 0.6 * GB
# What vLLM keeps of its share for activations before it lays out its cache.
VLLM_WORKING_BYTES = 1.5 * GB


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
    vllm = settings.vllm_share * gpu_bytes
    outside = _CUDA_BYTES + (_NCCL_BYTES if settings.num_gpus > 1 else 0)
    working = {
        "gathered layers": gathered(size, settings),
        "activations": activations(size, settings),
        "logits": logits(size, settings),
    }
    training = outside + sum(states.values()) + gathered(size, settings) + working_peak(size, settings)
    training += _VLLM_RESIDENT_BYTES if settings.vllm_leaves else vllm
    resident = 0.0 if settings.param_offload else states["weights"]
    resident += 0.0 if settings.optimizer_offload else states["optimizer"]
    weights = 2 * size.total / settings.tensor_parallel
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
    """Bytes of weights, gradients and the optimizer's two moments on each GPU; a critic has as much again."""
    if settings.cpu_offload:
        return {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0}
    adapters = size.lora(settings.lora_rank) if settings.lora_rank else 0
    trained = adapters or size.total
    num = {"weights": size.total + adapters, "gradients": trained, "optimizer": 2 * trained}
    if settings.has_critic:
        num = {"weights": num["weights"] + size.total, "gradients": trained + size.total}
        num["optimizer"] = 2 * num["gradients"]
    return {name: count * settings.param_bytes / settings.num_gpus for name, count in num.items()}


def gathered(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes of parameters in the type computed in: two layers (or all), and what lies outside layers all the time.

    Where they are trained, their whole gradients too, and once more in fp32 while they are summed over GPUs.
    """
    layers = 2 * size.layer if settings.reshard else size.num_layers * size.layer
    weights = settings.compute_bytes * (layers + size.outside_layers)
    if settings.lora_rank:
        return weights
    return weights + settings.compute_bytes * size.outside_layers + (settings.compute_bytes + 4) * 2 * size.layer


def activation_bytes(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes that one layer keeps of one token: what its norms, attention, MLP and adapters read again."""
    hidden, heads = size.hidden, size.query_width + size.key_width
    # Attention's inputs and output; each completion has its prompt's keys and values again.
    attention = 2 * size.query_width + 2 * size.key_width * settings.keys_per_token
    # A norm keeps its input in fp32, twice the bytes, and gives one more; where it is trained, its result before the
    # weight too. Qwen3 has them on queries and keys.
    norms = 6 * hidden + 2 * heads * size.has_qk_norm
    if not settings.lora_rank:
        norms += 2 * hidden + heads * size.has_qk_norm
    return settings.compute_bytes * (norms + attention + 4 * size.intermediate + 7 * settings.lora_rank)


def activations(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes of a micro-batch's activations: all layers', or their inputs and one layer's where they are recomputed."""
    tokens, one_layer = settings.micro_batch_tokens, activation_bytes(size, settings)
    if not settings.checkpointing:
        return tokens * size.num_layers * one_layer
    return tokens * (size.num_layers * settings.compute_bytes * size.hidden + one_layer)


def logits(size: ModelSize, settings: TrainingSettings) -> float:
    """Bytes of the logits that are held at a time, with their gradients."""
    at_a_time = min(settings.micro_batch_responses * size.vocab, LOGIT_CHUNK_BYTES // 4)
    return _BYTES_PER_LOGIT * at_a_time


def working_peak(size: ModelSize, settings: TrainingSettings) -> float:
    """Activations with logits at the backward pass's begin, or with one layer's gradients later."""
    tokens, compute = settings.micro_batch_tokens, settings.compute_bytes
    layer_gradients = tokens * compute * (2 * size.intermediate + 2.5 * size.hidden)
    at_the_end = tokens * compute * 9 * size.hidden + logits(size, settings)
    kept = activations(size, settings)
    if settings.checkpointing:
        inputs = kept - tokens * activation_bytes(size, settings)
        return max(inputs + at_the_end, kept + layer_gradients)
    return kept + max(at_the_end, layer_gradients)
