"""When and how verl's trainer saves: whole checkpoints or none, the best besides the last, the curriculum with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from statistics import fmean

from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from rgtrain.checkpoint_store import CheckpointStore
from rgtrain.files import flush
from rgtrain.verl_plugin.progress import METRICS, announce

# The curriculum's state in a checkpoint.
CURRICULUM = "curriculum.json"


class CheckpointingTrainer(PPOTrainerSync):
    """verl writes each checkpoint beside the others; here it is checked in, continued from, and removed."""

    @cached_property
    def _store(self) -> CheckpointStore:
        trainer = self.config.trainer
        return CheckpointStore(Path(trainer.default_local_dir), keep=trainer.max_actor_ckpt_to_keep, say=announce)

    # The step that is written but not published, and the score of this step's validation where it is the best so far.
    _written: int | None = None
    _best: float | None = None

    def _save_checkpoint(self) -> None:
        with self._failure_told():
            with self._store.saving(self.global_steps) as staging, self._saving_to(staging):
                super()._save_checkpoint()
                state = json.dumps(self.train_dataset.curriculum.state_dict())
                (staging / f"global_step_{self.global_steps}" / CURRICULUM).write_text(state + "\n")
            self._written = self.global_steps

    def _publish_checkpoint(self) -> None:
        """Show what was saved of a step. Called when its metrics are written: a run that continues misses none."""
        step, best, self._written, self._best = self._written, self._best, None, None
        with self._failure_told():
            if step is not None:
                flush(Path(self.config.run_dir) / METRICS)
                self._store.publish(step)
            if best is not None:
                self._store.mark_best(self.global_steps, best)

    @contextmanager
    def _failure_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            last = max(self._store.steps(), default=None)
            kept = "there is none before it" if last is None else f"the last is that of step {last}"
            announce(f"the checkpoint of step {self.global_steps} could not be saved ({reason[0]}); {kept}")
            if self.config.trainer.save_failure == "stop":
                raise

    @contextmanager
    def _saving_to(self, folder: Path) -> Iterator[None]:
        """verl saves into `folder`, and removes no earlier checkpoints: the store does."""
        trainer = self.config.trainer
        replaced = {"default_local_dir": str(folder), "max_actor_ckpt_to_keep": None, "max_critic_ckpt_to_keep": None}
        given = {name: trainer[name] for name in replaced}
        trainer.update(replaced)
        try:
            yield
        finally:
            trainer.update(given)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps:
            self._load_curriculum()

    def _load_curriculum(self) -> None:
        trainer = self.config.trainer
        from_elsewhere = trainer.resume_mode == "resume_path"
        folder = Path(trainer.resume_from_path) if from_elsewhere else self._store.steps()[self.global_steps]
        self.train_dataset.curriculum.load_state_dict(json.loads((folder / CURRICULUM).read_text()))

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        scores = [value for name, value in metrics.items() if name.startswith("val-core/") and "/acc/" in name]
        if scores and self.config.trainer.save_freq > 0 and self.global_steps:
            self._keep_if_best(fmean(scores))
        return metrics

    def _keep_if_best(self, score: float) -> None:
        best = self._store.best_score()
        if best is not None and score <= best:
            return
        if self._written is None and self.global_steps not in self._store.steps():
            self._save_checkpoint()
        if self._written is not None or self.global_steps in self._store.steps():
            self._best = score
