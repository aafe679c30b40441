"""Save and resume in verl's trainer, with atomic checkpoints that hold the curriculum and metrics of their step."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from verl.trainer.ppo.core_algos import AdaptiveKLController
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from rgtrain.checkpoints.checkpoint_store import Best, CheckpointStore, recorded_last
from rgtrain.checkpoints.metrics_file import METRICS, STEP_METRICS, read_metrics, unlogged_record, validation_score
from rgtrain.checkpoints.pickle_check import check_pickles
from rgtrain.checkpoints.shards.checkpoint import saved_by
from rgtrain.checkpoints.trained_problems import TrainedProblems, read_trained_problems
from rgtrain.errors import ConfigError
from rgtrain.files import flush, remove_leftovers
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.progress import metrics_line

# The file in a checkpoint with the state of the curriculum.
CURRICULUM = "curriculum.json"
# The file in a checkpoint with the coefficient of an adaptive KL reward, which verl does not save.
KL_COEFFICIENT = "kl_coefficient.json"


def load_kl_coefficient(controller: AdaptiveKLController, folder: Path) -> None:
    """Set the coefficient of an adaptive KL reward from the checkpoint in `folder`.

    Args:
        controller: verl's controller of the coefficient.
        folder: The folder of the checkpoint.

    Raises:
        ConfigError: The checkpoint does not hold a finite coefficient.
    """
    path = folder / KL_COEFFICIENT
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        value = error
    if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
        raise ConfigError(
            f"{str(path)!r} does not hold the coefficient of the adaptive KL reward ({value!r}); restore it from a "
            "copy, write the number into it, or resume from another checkpoint"
        )
    controller.value = value


class CheckpointingTrainer(PPOTrainer):
    """A trainer that saves through the run's CheckpointStore, which publishes a checkpoint once it is complete.

    It is combined with any of verl's trainers, which then comes after it among the base classes.

    verl saves a step before it validates and logs it. A checkpoint therefore carries the metrics of its step. If the
    run ends before they are logged, the next start validates the step again and logs them.
    """

    # The last step that this process has saved.
    _saved_step: int | None = None
    # The metrics of the step from which the run resumes, if the previous start ended before it logged them.
    _unlogged: dict[str, Any] | None = None
    # The problems of all steps so far; None if the run resumes from a checkpoint that does not record them.
    _trained: TrainedProblems | None = None

    @cached_property
    def _store(self) -> CheckpointStore:
        trainer = self.config.trainer
        return CheckpointStore(Path(trainer.default_local_dir), keep=trainer.max_actor_ckpt_to_keep, say=announce)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> Any:
        """Run verl's training step, and keep its batch and metrics for the checkpoint."""
        self._step_began, self._step_metrics = time.monotonic(), metrics
        self._batch = super().step(metrics, timing_raw)
        self._dumped_step = None
        return self._batch

    def _save_checkpoint(self) -> None:
        with self._failure_reported():
            with self._store.saving(self.global_steps) as staging, self._saving_to(staging):
                super()._save_checkpoint()
                folder = staging / f"global_step_{self.global_steps}"
                state = json.dumps(self.train_dataset.curriculum.state_dict())
                (folder / CURRICULUM).write_text(state + "\n")
                if controller := self._adaptive_kl():
                    (folder / KL_COEFFICIENT).write_text(json.dumps(float(controller.value)) + "\n")
                if self._trained is not None:
                    self._trained.write(folder)
                self._keep_step_metrics(folder)
            self._saved_step = self.global_steps

    def _keep_step_metrics(self, folder: Path) -> None:
        """Write the metrics of the step into its checkpoint, and flush its rollouts and all earlier metrics to disk."""
        metrics = {name: value for name, value in self._step_metrics.items() if not isinstance(value, dict)}
        timing = {"step": time.monotonic() - self._step_began, **self.timing_raw}
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        self._compute_metrics(self._batch, metrics, timing, global_steps=self.global_steps, epoch=epoch)
        (folder / STEP_METRICS).write_text(metrics_line(metrics, step=self.global_steps))
        if rollout_folder := self.config.trainer.get("rollout_data_dir"):
            self._log_rollout_data(self._batch, self.timing_raw, rollout_folder)
            for written in self._dump_futures:
                written.result()
        logged = Path(self.config.run_dir) / METRICS
        if logged.exists():
            flush(logged)

    def _log_rollout_data(self, batch: Any, timing_raw: dict[str, Any], rollout_data_dir: str) -> None:
        if self._dumped_step != self.global_steps:
            super()._log_rollout_data(batch, timing_raw, rollout_data_dir)
            self._dumped_step = self.global_steps

    @contextmanager
    def _failure_reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            last = max(self._store.steps(), default=None)
            kept = "no step is saved yet" if last is None else f"the last saved step is {last}"
            announce(f"could not save the checkpoint of step {self.global_steps} ({reason[0]}); {kept}")
            if self.config.trainer.save_failure == "stop":
                raise

    @contextmanager
    def _saving_to(self, folder: Path) -> Iterator[None]:
        """Make verl save into `folder` and keep all earlier checkpoints, which the store prunes."""
        trainer = self.config.trainer
        replaced = {"default_local_dir": str(folder), "max_actor_ckpt_to_keep": None, "max_critic_ckpt_to_keep": None}
        original = {name: trainer[name] for name in replaced}
        trainer.update(replaced)
        try:
            yield
        finally:
            trainer.update(original)

    def _load_checkpoint(self) -> None:
        folder = resumed_folder(self.config.trainer)
        if folder is not None:
            # verl unpickles these files without restrictions.
            check_pickles(folder)
            self._announce_other_number_of_gpus(folder)
        super()._load_checkpoint()
        if self.config.trainer.get("val_only", False):
            # The run's folder stays as it is.
            self._trained = None
            return
        own_folder = folder if folder is not None and folder.parent.resolve() == self._store.root.resolve() else None
        is_latest = self.config.trainer.resume_mode == "auto"
        self._store.begin_after(0 if own_folder is None else self.global_steps, later_are_damaged=is_latest)
        run_dir = Path(self.config.run_dir)
        remove_leftovers(run_dir, ("config.yaml", METRICS, "wandb_run_id"))
        if folder is not None:
            self._trained = read_trained_problems(folder)
        else:
            # The model itself may be the export of an earlier run.
            model = Path(self.config.actor_rollout_ref.model.path)
            self._trained = read_trained_problems(model) or TrainedProblems()
        if folder is not None:
            load_curriculum(self.train_dataset.curriculum, folder)
            if controller := self._adaptive_kl():
                load_kl_coefficient(controller, folder)
        if own_folder is not None:
            self._unlogged = unlogged_record(run_dir / METRICS, own_folder)
            self._restore_best(run_dir / METRICS)
            # The previous start may have ended before it pruned.
            self._store.prune()
        trainer = self.config.trainer
        if self.global_steps:
            # In a resumed run, verl's validation before training repeats a validation whose result was lost.
            trainer.val_before_train = self._unlogged is not None and self._is_validated(self.global_steps)

    def _announce_other_number_of_gpus(self, folder: Path) -> None:
        trainer, saved = self.config.trainer, saved_by(folder / "actor")
        num_gpus = trainer.n_gpus_per_node * trainer.nnodes
        if saved is not None and saved.world_size != num_gpus:
            unit = "worker" if trainer.device == "cpu" else "GPU"
            counted = f"{saved.world_size} {unit}" + ("s" if saved.world_size > 1 else "")
            announce(f"resuming a checkpoint of {counted} on {num_gpus}")

    def _is_validated(self, step: int) -> bool:
        trainer = self.config.trainer
        is_last = step >= trainer.total_training_steps
        return trainer.test_freq > 0 and (is_last or step % trainer.test_freq == 0)

    def _restore_best(self, logged: Path) -> None:
        """Restore a lost or incomplete record of the best step from the metrics of the saved steps."""
        best = self._store.best()
        if best is not None and best.metric:
            return
        found = [
            Best(record["step"], *score)
            for record in read_metrics(logged)[0]
            if record["step"] in {0, *self._store.steps()} and (score := validation_score(record))
        ]
        if found:
            self._store.mark_best(max(found, key=lambda best: best.score))

    def _adaptive_kl(self) -> AdaptiveKLController | None:
        """Return the controller that adapts the KL reward's coefficient, or None if the algorithm has none."""
        controller = self.kl_ctrl_in_reward if self.config.algorithm.use_kl_in_reward else None
        return controller if isinstance(controller, AdaptiveKLController) else None

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        score = validation_score(metrics)
        if score and self.config.trainer.save_freq > 0:
            self._keep_if_best(Best(self.global_steps, *score))
        return metrics

    def _keep_if_best(self, new: Best) -> None:
        """Record `new` if it is the best step, and save its checkpoint first. Step 0 needs no checkpoint."""
        best = self._store.best()
        # Scores by different metrics are not comparable.
        if (
            best is not None
            and best.metric in (None, new.metric)
            and (new.score <= best.score or new.step == best.step)
        ):
            return
        if new.step and new.step not in self._store.steps():
            self._save_checkpoint()
        if not new.step or new.step in self._store.steps():
            with self._failure_reported():
                self._store.mark_best(new)


def resumed_folder(trainer: Any) -> Path | None:
    """Return the checkpoint from which verl resumes.

    Args:
        trainer: The configuration's `trainer` node. Its `resume_from_path` is made absolute in place.

    Returns:
        The folder of the checkpoint, or None for a new run.
    """
    if trainer.resume_mode == "disable":
        return None
    if trainer.resume_mode == "resume_path":
        # verl parses everything after the last "global_step_" as the step, so a trailing slash must go.
        trainer.resume_from_path = str(Path(trainer.resume_from_path).absolute())
        return Path(trainer.resume_from_path)
    root = Path(trainer.default_local_dir)
    folder = root / f"global_step_{recorded_last(root)}"
    return folder if folder.is_dir() else None


def load_curriculum(curriculum: Any, folder: Path) -> None:
    """Restore the curriculum from the checkpoint in `folder`.

    Args:
        curriculum: The run's curriculum.
        folder: The folder of the checkpoint.

    Raises:
        ConfigError: The state in the checkpoint is missing, damaged or of another curriculum.
    """
    path = folder / CURRICULUM
    try:
        curriculum.load_state_dict(json.loads(path.read_text()))
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ConfigError(
            f"{str(path)!r} does not hold the state of this run's curriculum ({error!r}); restore it from a copy, or "
            "resume from another checkpoint"
        ) from error
