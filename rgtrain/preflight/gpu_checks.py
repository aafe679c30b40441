"""Compare the GPUs that a run asks for with those of this machine."""

import os

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import gpu_memories_gb


def check_devices(config: RunConfig) -> None:
    """Raise ConfigError if the run asks for more GPUs than this machine has."""
    trainer = config.trainer
    if trainer.device != "cuda" or trainer.nnodes > 1:
        return
    present = len(gpu_memories_gb())
    if trainer.n_gpus_per_node > present:
        raise ConfigError(
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node}, but only {present} GPU(s) are available "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}); set it to {present}"
            if present
            else "no GPU is available; set hardware=cpu"
        )


def gpu_bytes(config: RunConfig) -> float | None:
    """Return the memory of one GPU.

    Returns:
        Bytes of the smallest GPU of this machine if it has enough GPUs, otherwise of `hardware.gpu_memory_gb`. None if
        neither is known.
    """
    present = gpu_memories_gb()
    if config.trainer.n_gpus_per_node <= len(present):
        return min(present) * 1e9
    return (config.hardware.gpu_memory_gb or 0.0) * 1e9 or None
