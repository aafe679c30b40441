"""Compare the disk space that a run's checkpoints need with the free space."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.preflight.sizes import ModelSize


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of one checkpoint, the largest number kept at a time, and free bytes (None for another machine)."""

    checkpoint: float
    num_kept: int
    free: int | None

    @property
    def total(self) -> float:
        """Bytes of all checkpoints that exist at a time."""
        return self.checkpoint * self.num_kept

    @property
    def fits(self) -> bool:
        """Whether the free space is enough, as far as it is known."""
        return self.free is None or self.total <= self.free


def disk_need(config: RunConfig, size: ModelSize, settings: TrainingSettings, *, num_steps: int) -> DiskNeed:
    """Compute the disk space of a run's checkpoints.

    The best checkpoint is kept besides the latest ones. An old one is deleted only after its replacement is written.

    Args:
        config: The run's configuration.
        size: The model's size.
        settings: The run's settings.
        num_steps: The number of training steps.

    Returns:
        The need, with the free space of the disk that holds the checkpoints if the run is for this machine.
    """
    trainer = config.trainer
    num_saved = 0 if trainer.save_freq < 1 else -(-num_steps // trainer.save_freq)
    kept = trainer.max_actor_ckpt_to_keep
    num_kept = num_saved if kept is None else min(num_saved, kept + 2)
    trained = size.lora(settings.lora_rank) or size.total
    checkpoint = settings.param_bytes * (size.total + size.lora(settings.lora_rank) + 2 * trained)
    if settings.has_critic:
        checkpoint += settings.param_bytes * 3 * size.total
    folder = existing_parent(trainer.default_local_dir)
    return DiskNeed(checkpoint, num_kept, shutil.disk_usage(folder).free if runs_here(config) else None)


def existing_parent(path: Path) -> Path:
    """Return `path`, or its nearest ancestor that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
