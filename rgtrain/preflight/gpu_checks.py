"""The GPUs that a run asks for, and those there are."""

import os

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import gpu_memories_gb


def check_devices(config: RunConfig) -> None:
    """Raise ConfigError where more GPUs are asked for than this machine has."""
    trainer = config.trainer
    if trainer.device != "cuda" or trainer.nnodes > 1:
        return
    present = len(gpu_memories_gb())
    if trainer.n_gpus_per_node > present:
        raise ConfigError(
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node}, but {present} GPU(s) can be used "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}): "
            f"set it to {present}"
            if present
            else "no GPU can be used: choose hardware=cpu"
        )


def gpu_bytes(config: RunConfig) -> float | None:
    """The memory of one GPU: of this machine's where there are enough of them, else what the choice of hardware/ says.

    None where neither is known.
    """
    present = gpu_memories_gb()
    if config.trainer.n_gpus_per_node <= len(present):
        return min(present) * 1e9
    return (config.hardware.gpu_memory_gb or 0.0) * 1e9 or None
