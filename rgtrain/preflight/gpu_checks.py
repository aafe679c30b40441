"""Compare the GPUs and the memory that a run asks for with those of this machine, and describe them."""

import os

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import Gpu, memory_bytes, num_cpus, present_gpus, usable_gpus
from rgtrain.preflight.advice import advice
from rgtrain.preflight.batches import divisions_for
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.preflight.memory import estimate, offloaded_bytes
from rgtrain.preflight.training_model import find_model

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_devices(config: RunConfig, *, is_for_here: bool = True) -> None:
    """Check that this machine has the GPUs that the run asks for, and that settings chosen by preflight fit into them.

    If all settings are given, only a warning reports that they will not fit, because the estimate may be too high.

    Args:
        config: The run's configuration.
        is_for_here: Whether the run is for this machine. If not, only the memory is checked.

    Raises:
        ConfigError: GPUs are missing, have too little memory, or are several MIG slices.
    """
    if config.trainer.device != "cuda" or config.trainer.nnodes > 1:
        return
    if is_for_here:
        _check_gpus(config.trainer.n_gpus_per_node)
    if config.hardware.chosen and (excess := memory_error(config)):
        raise ConfigError(excess)


def _check_gpus(number: int) -> None:
    usable = usable_gpus()
    present = len(usable)
    if number > present:
        raise ConfigError(
            f"trainer.n_gpus_per_node={number}, but only {present} GPU(s) are available "
            f"({_VISIBLE}={os.environ.get(_VISIBLE, 'unset')}); set it to {present}"
            if present
            else "no GPU is available; set hardware=cpu"
        )
    if number > 1 and any(gpu.is_mig for gpu in usable):
        raise ConfigError(
            f"trainer.n_gpus_per_node={number}, but a GPU here is a MIG slice, and NCCL does not connect those; set it "
            f"to 1, or {_VISIBLE} to whole GPUs"
        )


def check_sleep_mode(config: RunConfig) -> None:
    """Check that vLLM can free its memory if it is to do so.

    Raises:
        ConfigError: vLLM's sleep mode is off, so its memory would stay in use during updates.
    """
    rollout, key = config.rollout, "actor_rollout_ref.rollout"
    if config.engine == "fast" and rollout.free_cache_engine and not rollout.enable_sleep_mode:
        raise ConfigError(
            f"{key}.free_cache_engine=true frees vLLM's memory during updates, which needs its sleep mode, but "
            f"{key}.enable_sleep_mode=false; set both to true or both to false"
        )


def memory_error(config: RunConfig) -> str | None:
    """Return a message with the fix if by the estimate the run will not fit into memory, else None.

    Offloaded states need the memory of the machine, which is known only if the run is for this machine. The estimate is
    for the engine `fast` alone: verl's own engine repeats prompts and keeps the logits of all tokens.
    """
    size, available = find_model(config).size, gpu_bytes(config)
    if config.engine != "fast" or size is None or available is None:
        return None
    settings = TrainingSettings.of(config, shares_prompts=size.shares_prompts)
    peak = estimate(size, settings, gpu_bytes=available).peak
    if peak <= available:
        offloaded, host = offloaded_bytes(size, settings), memory_bytes()
        if offloaded <= host or not runs_here(config):
            return None
        return (
            f"the run fits into GPU memory only if {offloaded / 1e9:.0f} GB of states are offloaded, but this machine "
            f"or its container allows {host / 1e9:.0f} GB of memory; use more GPUs, larger GPUs, a smaller model "
            "(model=CHOICE) or adapters (model=[CHOICE,lora])"
        )
    changes = " ".join(advice(size, settings, gpu_bytes=available))
    return (
        f"the run will not fit into GPU memory ({peak / 1e9:.0f} GB needed, {available / 1e9:.0f} GB available); try "
        f"{changes}{_smallest_hint(config)}"
    )


def gpu_bytes(config: RunConfig) -> float | None:
    """Return the memory of one GPU.

    Returns:
        Bytes of the smallest GPU of this machine if it has enough GPUs, or of `hardware.gpu_memory_gb` if that is
        smaller or the machine has too few. None if neither is known.
    """
    gpus = usable_gpus()
    known = [config.hardware.gpu_memory_gb or 0.0]
    if config.trainer.n_gpus_per_node <= len(gpus):
        known.append(min(gpu.memory_gb for gpu in gpus))
    return min(filter(None, known), default=0.0) * 1e9 or None


def describe_devices(config: RunConfig) -> str:
    """Return the number of devices of a run, and, if it runs on GPUs of this machine, their names and memory."""
    trainer = config.trainer
    if trainer.device != "cuda":
        cores, workers = num_cpus(), trainer.num_gpus
        return f"on {cores} CPU core{'s' * (cores > 1)}, {workers} worker{'s' * (workers > 1)}"
    usable, wanted = usable_gpus(), trainer.n_gpus_per_node
    if trainer.nnodes > 1 or config.ray_init.address is not None:
        return f"on {wanted} GPUs of each of {trainer.nnodes} machine(s)"
    if wanted > len(usable):
        size = f" of {config.hardware.gpu_memory_gb:g} GB" if config.hardware.gpu_memory_gb else ""
        return f"on {_gpus(wanted)}{size}, which this machine does not have"
    num_present = max(len(present_gpus()), len(usable))
    count = _gpus(wanted) if wanted == num_present else f"{wanted} of {_gpus(num_present)}"
    return f"on {count}: {_names(usable)}{_reasons(config)}"


def describe_choice(config: RunConfig) -> str | None:
    """Return the memory settings of a run of which preflight chose some, in a few words; None if it chose none."""
    if not config.hardware.chosen:
        return None
    actor, rollout, fsdp = config.actor, config.rollout, config.actor.fsdp_config
    words = [
        f"micro-batches of {actor.ppo_max_token_len_per_gpu:,} tokens",
        "gradient checkpointing" if config.model.enable_gradient_checkpointing else "no gradient checkpointing",
    ]
    if config.trainer.num_gpus > 1:
        words.append(f"states sharded over {_shard_size(config)} GPUs")
    words.append(f"parameters gathered {'as needed' if fsdp.reshard_after_forward else 'once per update'}")
    once = fsdp.use_no_sync_for_gradient_accumulation
    words.append(f"gradients reduced once per {'update' if once else 'micro-batch'}")
    if fsdp.offload_policy:
        words.append("states offloaded")
    elif fsdp.param_offload or fsdp.optimizer_offload:
        words.append("states offloaded during generation")
    sleeps = "asleep" if rollout.free_cache_engine else "awake"
    words.append(f"vLLM with {rollout.gpu_memory_utilization:.0%} of the memory, {sleeps} during updates")
    return ", ".join(words)


def _shard_size(config: RunConfig) -> int:
    return TrainingSettings.of(config).shard_size


def _gpus(number: int) -> str:
    return f"{number} GPU" if number == 1 else f"{number} GPUs"


def _names(gpus: list[Gpu]) -> str:
    """Return "NVIDIA A10 (24 GB)", or each different GPU with a note that the smallest decides."""
    named = list(dict.fromkeys(f"{gpu.name} ({gpu.memory_gb:.0f} GB)" for gpu in gpus))
    if len({round(gpu.memory_gb) for gpu in gpus}) == 1:
        return ", ".join(named)
    smallest = min(gpu.memory_gb for gpu in gpus)
    return f"{', '.join(named)}; memory settings are for the smallest, {smallest:.0f} GB"


def _reasons(config: RunConfig) -> str:
    """Return why the run uses fewer GPUs than this machine has, in brackets, or nothing."""
    usable, wanted = usable_gpus(), config.trainer.n_gpus_per_node
    reasons = []
    if len(usable) < len(present_gpus()):
        reasons.append(f"{_VISIBLE}={os.environ.get(_VISIBLE)}")
    if wanted < len(usable):
        reasons.append(_reason_for_fewer(config, len(usable)))
    return f" ({'; '.join(reasons)})" if reasons else ""


def _reason_for_fewer(config: RunConfig, num_usable: int) -> str:
    key = "trainer.n_gpus_per_node"
    if key not in config.hardware.chosen:
        return f"{key}={config.trainer.n_gpus_per_node}"
    wrong = [row for row in divisions_for(config, num_usable) if row[1] % row[3]]
    if not wrong:
        return "NCCL does not connect MIG slices"
    name, value, divisor_name, divisor = wrong[0]
    return f"because {name}={value} is not a multiple of {divisor_name}={divisor}"


def _smallest_hint(config: RunConfig) -> str:
    memories = [gpu.memory_gb for gpu in usable_gpus()]
    if config.trainer.n_gpus_per_node > len(memories) or max(memories) - min(memories) < 1:
        return ""
    larger = ",".join(str(number) for number, memory in enumerate(memories) if memory > min(memories))
    return f", or leave out the GPUs of {min(memories):.0f} GB (of {_gpus(len(memories))}, keep numbers {larger})"
