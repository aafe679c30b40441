"""Choose the number of GPUs and the memory settings that a configuration leaves open.

A value `${chosen:DEFAULT}` in a file of configs/ leaves its key open. Any other value is kept, whether it comes from
the command line, an experiment or a choice of hardware/.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain.config.composition import checked_config
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import memory_bytes, usable_gpus
from rgtrain.preflight.batches import divisions_for
from rgtrain.preflight.gpu_checks import gpu_bytes
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.preflight.memory import VLLM_WORKING_BYTES, estimate, offloaded_bytes
from rgtrain.preflight.sizes import ModelSize
from rgtrain.preflight.training_model import find_model

_NUM_GPUS = "trainer.n_gpus_per_node"
_ACTOR = "actor_rollout_ref.actor"
# The keys that may be left open, with their fields of TrainingSettings.
_FIELDS = {
    f"{_ACTOR}.ppo_max_token_len_per_gpu": "max_micro_batch_tokens",
    f"{_ACTOR}.fsdp_config.reshard_after_forward": "reshard",
    f"{_ACTOR}.fsdp_config.use_no_sync_for_gradient_accumulation": "sync_once",
    f"{_ACTOR}.fsdp_config.param_offload": "param_offload",
    f"{_ACTOR}.fsdp_config.optimizer_offload": "optimizer_offload",
    f"{_ACTOR}.fsdp_config.offload_policy": "cpu_offload",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "vllm_share",
}
# From the fastest to the one that needs least memory. Resharding gathers parameters and reduces gradients once per
# micro-batch. Offloading moves weights and optimizer to the host while vLLM generates, or always.
_IN_GPU = {"param_offload": False, "optimizer_offload": False, "cpu_offload": False}
_STRATEGIES: tuple[Mapping[str, Any], ...] = (
    {"reshard": False, "sync_once": True, **_IN_GPU},
    {"reshard": True, "sync_once": False, **_IN_GPU},
    {"reshard": True, "sync_once": False, **_IN_GPU, "param_offload": True, "optimizer_offload": True},
    {"reshard": True, "sync_once": False, **_IN_GPU, "cpu_offload": True},
)
_TOKEN_BUDGETS = (32_768, 16_384, 8192, 4096, 2048, 1024)


@dataclass(frozen=True)
class _Demand:
    """Requirements on a choice: a free share of memory, tokens per micro-batch, and sequences in vLLM's KV cache."""

    free_share: float
    min_tokens: int
    min_sequences: int


# The first demand that any choice meets is used.
_DEMANDS = (_Demand(0.08, 8192, 64), _Demand(0.05, 4096, 8), _Demand(0.0, 1, 1))
# vLLM's share of a GPU. A larger one is only chosen if the KV cache would be too small.
_USUAL_SHARE, _LARGEST_SHARE = 0.6, 0.9


def choose_gpu_settings(composed: DictConfig, checked: DictConfig) -> DictConfig:
    """Set the keys that a composed configuration leaves open, and record them in `hardware.chosen`.

    If the configuration or the model cannot be used, nothing is chosen, and the checks that follow report the error.

    Args:
        composed: The unresolved configuration. It is changed in place, and resolved if values are chosen.
        checked: A copy of it that is resolved and checked.

    Returns:
        The configuration with the chosen values, resolved and checked. It is `checked` if no value is chosen.

    Raises:
        ConfigError: A value that depends on a chosen one is unusable.
    """
    open_keys = [key for key in (_NUM_GPUS, *_FIELDS) if _is_open(composed, key)]
    if not open_keys:
        return checked
    try:
        chosen = _chosen_values(RunConfig.of(plain_config(checked)), open_keys)
    except ConfigError:
        return checked
    with open_dict(composed):
        for key, value in chosen.items():
            OmegaConf.update(composed, key, value)
        composed.hardware.chosen = chosen
    return checked_config(composed)


def _is_open(composed: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(composed, parent)
    value = node._get_node(name) if isinstance(node, DictConfig) else None
    return value is not None and str(value._value()).startswith("${chosen:")


def _chosen_values(config: RunConfig, open_keys: Sequence[str]) -> dict[str, Any]:
    if config.trainer.device != "cuda":
        return {}
    chosen: dict[str, Any] = {}
    if _NUM_GPUS in open_keys and usable_gpus():
        chosen[_NUM_GPUS] = best_num_gpus(config)
        config = replace(config, trainer=replace(config.trainer, n_gpus_per_node=chosen[_NUM_GPUS]))
    size, available = find_model(config).size, gpu_bytes(config)
    if size is not None and available is not None:
        fields = {_FIELDS[key]: key for key in open_keys if key in _FIELDS}
        host = memory_bytes() if runs_here(config) else None
        given = TrainingSettings.of(config, shares_prompts=size.shares_prompts)
        settings = best_settings(size, given, gpu_bytes=available, host_bytes=host, open_fields=frozenset(fields))
        chosen |= {key: getattr(settings, field) for field, key in fields.items()}
    return chosen


def best_num_gpus(config: RunConfig) -> int:
    """Return the largest number of this machine's GPUs that the batch sizes and tensor parallelism divide.

    Returns:
        At least 1. If no number fits, all GPUs, so that `check_batches` names the sizes. 1 for MIG slices, because NCCL
        does not connect them.
    """
    gpus = usable_gpus()
    if any(gpu.is_mig for gpu in gpus):
        return 1
    for number in range(len(gpus), 0, -1):
        if not any(size % divisor for _, size, _, divisor in divisions_for(config, number)):
            return number
    return len(gpus)


def best_settings(
    size: ModelSize,
    settings: TrainingSettings,
    *,
    gpu_bytes: float,
    host_bytes: float | None,
    open_fields: frozenset[str],
) -> TrainingSettings:
    """Return the fastest settings that fit into memory by preflight's estimate.

    Args:
        size: The model's size.
        settings: The run's settings.
        gpu_bytes: The memory of one GPU.
        host_bytes: The memory of the machine, which limits offloading; None if it is unknown.
        open_fields: The fields of `settings` that may change.

    Returns:
        The settings. If none fit, those that need the least memory of the GPU.
    """
    for demand in _DEMANDS:
        for candidate in _candidates(settings, demand, open_fields):
            candidate = _with_vllm_share(size, candidate, demand, open_fields, gpu_bytes=gpu_bytes)
            estimated = estimate(size, candidate, gpu_bytes=gpu_bytes)
            num_sequences = min(demand.min_sequences, _num_sequences(candidate))
            if (
                estimated.peak <= (1 - demand.free_share) * gpu_bytes
                and estimated.kv_cache_tokens >= num_sequences * _sequence_tokens(candidate)
                and (host_bytes is None or offloaded_bytes(size, candidate) <= 0.8 * host_bytes)
            ):
                return candidate
    last = _DEMANDS[-1]
    candidates = [
        _with_vllm_share(size, candidate, last, open_fields, gpu_bytes=gpu_bytes)
        for candidate in _candidates(settings, last, open_fields)
    ]
    return min(candidates, key=lambda candidate: estimate(size, candidate, gpu_bytes=gpu_bytes).peak)


def _candidates(settings: TrainingSettings, demand: _Demand, open_fields: frozenset[str]) -> Iterator[TrainingSettings]:
    """Yield the settings of each strategy with each token budget, without repetition."""
    seen = set()
    for strategy in _STRATEGIES:
        for budget in _TOKEN_BUDGETS:
            if budget < demand.min_tokens:
                continue
            # verl refuses a sequence that is longer than the budget.
            tokens = max(budget, _sequence_tokens(settings))
            changes = {**strategy, "max_micro_batch_tokens": tokens}
            candidate = replace(settings, **{name: changes[name] for name in changes.keys() & open_fields})
            if candidate not in seen:
                seen.add(candidate)
                yield candidate


def _with_vllm_share(
    size: ModelSize, settings: TrainingSettings, demand: _Demand, open_fields: frozenset[str], *, gpu_bytes: float
) -> TrainingSettings:
    """Give vLLM its usual share of the GPU, less if memory is short, or more if the KV cache would be too small."""
    if "vllm_share" not in open_fields:
        return settings
    least = (2 * size.total / settings.tensor_parallel + VLLM_WORKING_BYTES) / gpu_bytes
    # With the smallest share, the free memory can be added to it.
    smallest = estimate(size, replace(settings, vllm_share=0.0), gpu_bytes=gpu_bytes)
    peak = smallest.generating if settings.vllm_sleeps else smallest.peak
    room = least + 1 - demand.free_share - peak / gpu_bytes
    cache = min(demand.min_sequences, _num_sequences(settings)) * _sequence_tokens(settings)
    needed = least + cache * size.kv_cache(tensor_parallel=settings.tensor_parallel) / gpu_bytes
    share = min(room, _USUAL_SHARE if needed <= _USUAL_SHARE else _LARGEST_SHARE)
    # Rounded down to stay within memory.
    return replace(settings, vllm_share=max(0.05, int(share * 100) / 100))


def _sequence_tokens(settings: TrainingSettings) -> int:
    return settings.prompt_tokens + settings.response_tokens


def _num_sequences(settings: TrainingSettings) -> int:
    """Return the number of completions of a mini-batch that one engine generates at a time, at least 1."""
    return max(1, settings.mini_batch_size * settings.group_size * settings.tensor_parallel // settings.num_gpus)
