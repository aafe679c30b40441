"""Text tables of the preflight report."""

from collections.abc import Sequence

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.batches import divisions
from rgtrain.preflight.disk import DiskNeed
from rgtrain.preflight.memory import MemoryEstimate
from rgtrain.preflight.problem_samples import DatasetSample
from rgtrain.tables import printed_table

_FSDP = "actor_rollout_ref.actor.fsdp_config"
# The reasons for true and for false of the values that preflight chooses.
_REASONS = {
    "actor_rollout_ref.model.enable_gradient_checkpointing": (
        "saves memory of activations, computes a third more",
        "activations fit",
    ),
    f"{_FSDP}.reshard_after_forward": (
        "saves the whole model in bf16, gathers layers twice per micro-batch",
        "the whole model in bf16 fits and is gathered once per update",
    ),
    f"{_FSDP}.use_no_sync_for_gradient_accumulation": (
        "all gradients in fp32 fit and are reduced once per update",
        "saves all gradients in fp32, reduces them once per micro-batch",
    ),
    f"{_FSDP}.param_offload": ("makes room for vLLM", "fits"),
    f"{_FSDP}.optimizer_offload": ("makes room for vLLM", "fits"),
    f"{_FSDP}.offload_policy": ("the GPUs have no room for the states", "fits"),
    "actor_rollout_ref.rollout.free_cache_engine": (
        "updates use vLLM's memory",
        "updates and vLLM fit side by side",
    ),
    "actor_rollout_ref.rollout.enable_sleep_mode": ("needed by free_cache_engine", "not needed"),
}


def batches_table(config: RunConfig) -> str:
    """Return the table of sizes that must divide each other, with the nearest values that do."""
    rows = []
    for name, value, divisor_name, divisor in divisions(config):
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = " or ".join(str(n) for n in (below, above) if n)
        rows.append(
            [name, divisor_name, str(value), str(divisor), "ok" if value % divisor == 0 else f"set it to {nearest}"]
        )
    return printed_table(["size", "must be a multiple of", "value", "divisor", "result"], rows, num_left=2)


def memory_table(estimated: MemoryEstimate, *, gpu_bytes: float) -> str:
    """Return the table of memory use by part in GB, and of both peaks as shares of a GPU's memory."""
    rows = [[name, _gb(value), ""] for name, value in estimated.parts.items()]
    rows.append(["peak while training", _gb(estimated.training), _share(estimated.training, gpu_bytes)])
    rows.append(["peak while generating", _gb(estimated.generating), _share(estimated.generating, gpu_bytes)])
    return printed_table(["part, per GPU", "GB", f"of {gpu_bytes / 1e9:.0f} GB"], rows)


def chosen_table(config: RunConfig, settings: TrainingSettings, *, kv_cache_sequences: float) -> str:
    """Return the table of the values that preflight chose, with a reason each.

    Args:
        config: The run's configuration.
        settings: Its settings.
        kv_cache_sequences: The number of sequences of full length that vLLM's KV cache holds.
    """
    numbers = {
        "trainer.n_gpus_per_node": "the most that fit batch, tensor parallelism and sharding",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": (
            f"{settings.num_micro_batches} micro-batches per update at full length"
        ),
        f"{_FSDP}.fsdp_size": (
            "all GPUs share one copy of the states"
            if settings.shard_size == settings.num_gpus
            else "a copy of the states per machine, so that only gradients pass the network"
        ),
        "actor_rollout_ref.rollout.gpu_memory_utilization": f"{kv_cache_sequences:.0f} sequences in the KV cache",
    }
    rows = []
    for key, value in config.hardware.chosen.items():
        reason = _REASONS[key][not value] if key in _REASONS else numbers[key]
        rows.append([key, str(value).lower(), reason])
    return printed_table(["chosen", "value", "reason"], rows, num_left=3)


def prompts_table(samples: Sequence[DatasetSample], config: RunConfig) -> str:
    """Return the table of token lengths by dataset."""
    limit, response = config.data.max_prompt_length, config.data.max_response_length
    rows = [
        [
            sample.name,
            f"{sample.share:.1%}",
            str(len(sample.prompt_tokens)),
            str(sample.quantile(0.5)),
            str(sample.quantile(0.99)),
            str(max(sample.prompt_tokens)),
            f"{sample.share_over(limit):.0%}",
            "" if sample.longest_oracle is None else str(sample.longest_oracle),
        ]
        for sample in samples
    ]
    lengths = ["median", "p99", "max", f"over {limit}", f"longest answer (limit {response})"]
    return printed_table(["dataset", "share", "sampled", *lengths], rows)


def cost_table(samples: Sequence[DatasetSample]) -> str:
    """Return the table of milliseconds by dataset to generate a problem and to score a correct answer."""
    rows = [
        [
            sample.name,
            f"{1e3 * sample.generate_seconds:.2f}",
            "" if sample.score_seconds is None else f"{1e3 * sample.score_seconds:.2f}",
        ]
        for sample in samples
    ]
    return printed_table(["dataset", "generate (ms)", "score (ms)"], rows)


def disk_line(need: DiskNeed) -> str:
    """Return one line that compares the space of checkpoints with the free space, if that is known."""
    taken = f"{need.num_kept} checkpoints of {_gb(need.checkpoint)} GB at a time take {_gb(need.total)} GB"
    if need.free is None:
        return f"{taken}; the run is for another machine, so this machine's disk does not count"
    return f"{taken} of {_gb(need.free)} GB free ({'fits' if need.fits else 'does not fit'})"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"


def _share(num_bytes: float, of: float) -> str:
    return f"{num_bytes / of:.0%}"
