"""Choose the number of GPUs and the memory settings that a configuration leaves open.

A value `${chosen:DEFAULT}` in a file of configs/ leaves its key open. Any other value is kept, whether it comes from
the command line, an experiment or a choice of hardware/.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain.config.composition import checked_config
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import memory_bytes, usable_gpus
from rgtrain.preflight.batches import divisions_for
from rgtrain.preflight.duration import GPUS, GpuRates, gpu_kind
from rgtrain.preflight.gpu_checks import gpu_bytes
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.preflight.memory import VLLM_WORKING_BYTES, estimate, offloaded_bytes
from rgtrain.preflight.sizes import ModelSize
from rgtrain.preflight.step_seconds import step_seconds
from rgtrain.preflight.training_model import find_model

_NUM_GPUS = "trainer.n_gpus_per_node"
_ACTOR = "actor_rollout_ref.actor"
# The keys that may be left open, with their fields of TrainingSettings.
_FIELDS = {
    "actor_rollout_ref.model.enable_gradient_checkpointing": "checkpointing",
    f"{_ACTOR}.ppo_max_token_len_per_gpu": "max_micro_batch_tokens",
    f"{_ACTOR}.fsdp_config.fsdp_size": "fsdp_size",
    f"{_ACTOR}.fsdp_config.reshard_after_forward": "reshard",
    f"{_ACTOR}.fsdp_config.use_no_sync_for_gradient_accumulation": "sync_once",
    f"{_ACTOR}.fsdp_config.param_offload": "param_offload",
    f"{_ACTOR}.fsdp_config.optimizer_offload": "optimizer_offload",
    f"{_ACTOR}.fsdp_config.offload_policy": "cpu_offload",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "vllm_share",
    "actor_rollout_ref.rollout.free_cache_engine": "vllm_sleeps",
    "actor_rollout_ref.rollout.enable_sleep_mode": "vllm_sleeps",
}
# The two keys of vLLM's sleep mode. If one is given, the other one follows it.
_SLEEP_KEYS = ("actor_rollout_ref.rollout.free_cache_engine", "actor_rollout_ref.rollout.enable_sleep_mode")
# Alternatives for each group of fields, the usual one first. Estimated seconds decide, and equal ones keep this order.
# With resharding, parameters are gathered twice per micro-batch instead of once per update. With `sync_once`, gradients
# are reduced once per update instead of once per micro-batch.
_SHARDING = (
    {"reshard": False, "sync_once": True},
    {"reshard": False, "sync_once": False},
    {"reshard": True, "sync_once": False},
)
# States stay on the GPU, leave it while vLLM generates, or are always in the memory of the machine. The next one is
# considered only if no settings with the one before fit.
_OFFLOADING = (
    {"param_offload": False, "optimizer_offload": False, "cpu_offload": False},
    {"param_offload": True, "optimizer_offload": True, "cpu_offload": False},
    {"param_offload": False, "optimizer_offload": False, "cpu_offload": True},
)
_TOKEN_BUDGETS = (32_768, 24_576, 16_384, 12_288, 8192, 6144, 4096, 3072, 2048, 1024)


@dataclass(frozen=True)
class _Demand:
    """Requirements on a choice: a free share of memory, tokens per micro-batch, and sequences in vLLM's KV cache."""

    free_share: float
    min_tokens: int
    min_sequences: int


# The first demand that any settings meet is used. Estimates can be too low, so some memory stays free.
_DEMANDS = (_Demand(0.08, 4096, 64), _Demand(0.05, 2048, 8), _Demand(0.0, 1, 1))
# Of settings whose seconds differ by less than this factor, the one that needs least memory is taken.
_EQUAL_SECONDS = 1.01
# vLLM's share of a GPU. It gets a KV cache for some more sequences than an equal part of the batch, and twice the
# memory for activations, because a share that is too small could not be started. The rest is for training.
_LARGEST_SHARE = 0.9
_SPARE_SEQUENCES = 1.25


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
    size, available, kind = find_model(config).size, gpu_bytes(config), gpu_kind(config)
    if size is not None and available is not None and kind is not None:
        host = memory_bytes() if runs_here(config) else None
        given = TrainingSettings.of(config, shares_prompts=size.shares_prompts)
        fields = {_FIELDS[key] for key in open_keys if key in _FIELDS}
        if not set(_SLEEP_KEYS) <= set(open_keys):
            given = replace(given, vllm_sleeps=config.rollout.free_cache_engine and config.rollout.enable_sleep_mode)
            fields.discard("vllm_sleeps")
        if config.engine != "fast":
            # These save time only if the estimate is right, and it was measured with the other engine.
            fields -= {"checkpointing", "vllm_sleeps", "fsdp_size"}
        settings = best_settings(
            size, given, gpu=GPUS[kind], gpu_bytes=available, host_bytes=host, open_fields=frozenset(fields)
        )
        chosen |= {key: getattr(settings, _FIELDS[key]) for key in open_keys if key in _FIELDS}
    return chosen


def best_num_gpus(config: RunConfig) -> int:
    """Return the largest number of this machine's GPUs that batch sizes, tensor parallelism and sharding allow.

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
    gpu: GpuRates,
    gpu_bytes: float,
    host_bytes: float | None,
    open_fields: frozenset[str],
) -> TrainingSettings:
    """Return the settings with the shortest estimated step among those that fit into memory by preflight's estimate.

    Args:
        size: The model's size.
        settings: The run's settings.
        gpu: The rates of one GPU.
        gpu_bytes: The memory of one GPU.
        host_bytes: The memory of the machine, which limits offloading; None if it is unknown.
        open_fields: The fields of `settings` that may change.

    Returns:
        The settings. If none fit, those that need the least memory of the GPU.
    """
    for demand, offloading in product(_DEMANDS, _OFFLOADING):
        fitting: list[tuple[float, float, TrainingSettings]] = []
        for candidate in _candidates(settings, offloading, open_fields):
            candidate = _with_vllm_share(size, candidate, demand, open_fields, gpu_bytes=gpu_bytes)
            estimated = estimate(size, candidate, gpu_bytes=gpu_bytes)
            if (
                estimated.peak <= (1 - demand.free_share) * gpu_bytes
                and candidate.micro_batch_tokens >= min(demand.min_tokens, settings.gpu_groups * settings.group_tokens)
                and estimated.kv_cache_tokens
                >= min(demand.min_sequences, settings.engine_sequences) * settings.sequence_tokens
                and (host_bytes is None or offloaded_bytes(size, candidate) <= 0.8 * host_bytes)
            ):
                seconds = step_seconds(size, candidate, gpu=gpu, kv_cache_tokens=estimated.kv_cache_tokens)
                fitting.append((seconds, estimated.peak, candidate))
        if fitting:
            limit = _EQUAL_SECONDS * min(seconds for seconds, _, _ in fitting)
            return min((one for one in fitting if one[0] <= limit), key=lambda one: one[1])[2]
    candidates = [
        _with_vllm_share(size, candidate, _DEMANDS[-1], open_fields, gpu_bytes=gpu_bytes)
        for offloading in _OFFLOADING
        for candidate in _candidates(settings, offloading, open_fields)
    ]
    return min(candidates, key=lambda candidate: estimate(size, candidate, gpu_bytes=gpu_bytes).peak)


def _candidates(
    settings: TrainingSettings, offloading: Mapping[str, Any], open_fields: frozenset[str]
) -> Iterator[TrainingSettings]:
    """Yield all combinations of the alternatives with this kind of offloading, without repetition."""
    # One copy of the states per machine, or one over all machines. Copies within a machine would save nothing.
    sizes = (settings.num_gpus // settings.num_machines, -1) if settings.num_machines > 1 else (-1,)
    alternatives: tuple[Sequence[Mapping[str, Any]], ...] = (
        [{"fsdp_size": fsdp_size} for fsdp_size in sizes],
        [{"checkpointing": False}, {"checkpointing": True}],
        _SHARDING,
        [{"vllm_sleeps": False}, {"vllm_sleeps": True}],
        [{"max_micro_batch_tokens": _whole_groups(budget, settings)} for budget in _TOKEN_BUDGETS],
    )
    seen = set()
    for choice in product([offloading], *alternatives):
        changes = {name: value for one in choice for name, value in one.items() if name in open_fields}
        candidate = replace(settings, **changes)
        if candidate not in seen:
            seen.add(candidate)
            yield candidate


def _whole_groups(budget: int, settings: TrainingSettings) -> int:
    """Round a budget down to groups of full length if it holds any. verl refuses a sequence that exceeds the budget."""
    if budget >= settings.group_tokens:
        return budget // settings.group_tokens * settings.group_tokens
    return max(budget, settings.sequence_tokens)


def _with_vllm_share(
    size: ModelSize, settings: TrainingSettings, demand: _Demand, open_fields: frozenset[str], *, gpu_bytes: float
) -> TrainingSettings:
    """Give vLLM the share of the GPU that its part of the batch needs, or less if memory is short."""
    if "vllm_share" not in open_fields:
        return settings
    least = (2 * size.total / settings.tensor_parallel + VLLM_WORKING_BYTES) / gpu_bytes
    # With the smallest share, the free memory can be added to it.
    smallest = estimate(size, replace(settings, vllm_share=0.0), gpu_bytes=gpu_bytes)
    peak = smallest.generating if settings.vllm_sleeps else smallest.peak
    room = least + 1 - demand.free_share - peak / gpu_bytes
    cache = (
        settings.engine_sequences * settings.sequence_tokens * size.kv_cache(tensor_parallel=settings.tensor_parallel)
    )
    share = least + (VLLM_WORKING_BYTES + _SPARE_SEQUENCES * cache) / gpu_bytes
    # Rounded down to stay within memory.
    return replace(settings, vllm_share=max(0.05, int(min(room, share, _LARGEST_SHARE) * 100) / 100))
