"""What a run writes, against what is free."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.preflight.sizes import ModelSize


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of one checkpoint, how many are there at a time, and how much is free."""

    checkpoint: float
    num_kept: int
    free: int

    @property
    def total(self) -> float:
        return self.checkpoint * self.num_kept

    @property
    def fits(self) -> bool:
        return self.total <= self.free


def disk_need(config: RunConfig, size: ModelSize, settings: TrainingSettings, *, num_steps: int) -> DiskNeed:
    """What the checkpoints of a run take: while one is written, those it will replace are there, and the best."""
    trainer = config.trainer
    num_saved = 0 if trainer.save_freq < 1 else -(-num_steps // trainer.save_freq)
    kept = trainer.max_actor_ckpt_to_keep
    num_kept = num_saved if kept is None else min(num_saved, kept + 2)
    trained = size.lora(settings.lora_rank) or size.total
    checkpoint = settings.param_bytes * (size.total + size.lora(settings.lora_rank) + 2 * trained)
    if settings.has_critic:
        checkpoint += settings.param_bytes * 3 * size.total
    return DiskNeed(checkpoint, num_kept, shutil.disk_usage(existing_parent(config.run_dir)).free)


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
