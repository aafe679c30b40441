"""verl's synchronous trainer with the project's metrics and progress, put into place through its hooks."""

import gc
import itertools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from verl.trainer.main_ppo import TaskRunnerV1
from verl.workers.engine_workers import ActorRolloutRefWorker

from rgtrain.checkpoints.metrics_file import METRICS
from rgtrain.problems.heldout import survey_spaces
from rgtrain.training.checkpointing import CheckpointingTrainer
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.metrics import Rollout, by_dataset
from rgtrain.training.progress import MetricsFile, TrainingProgress
from rgtrain.training.rollout.sample_store import MODEL_INPUTS, STORE, StoredWorkers
from rgtrain.training.worker import GeneratingWorker
from rgtrain.upstream.replacements import apply

# verl polls for finished rollouts every 2 s, longer than small models need to generate them.
_POLL_SECONDS = 0.02
# Enough to notice a small problem space, and seconds at most even where a problem takes a tenth of one to make.
_SURVEYED_PROBLEMS = 200

# What the updates read: nothing that is no tensor, which would take longer to send than the rest.
_ACTOR_FIELDS = (
    *MODEL_INPUTS,
    "rollout_log_probs",
    "old_log_probs",
    "advantages",
    "ref_log_prob",
    "rollout_is_weights",
)
_CRITIC_FIELDS = (*MODEL_INPUTS, "values", "returns")


class _PromptNames:
    """Names of prompts that sort in the order of drawing and are the same in each run of one configuration.

    Stands in for the module `uuid` in verl's trainer, whose names are random: verl sorts what it dumps by them.
    """

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from 0 for the prompts of `step`, or of the validation after it."""
        self._step, self._numbers = step, itertools.count()

    def uuid4(self) -> str:
        return f"{self._step:06}-{next(self._numbers):06}"


PROMPT_NAMES = _PromptNames()


class ReasoningGymTrainer(CheckpointingTrainer):
    """verl's training loop, untouched, with our workers and sample store; adds metrics by dataset and progress."""

    _stops_after: int | None = None

    def _build_replay_buffer(self) -> Any:
        replay_buffer = super()._build_replay_buffer()
        replay_buffer.poll_interval = _POLL_SECONDS
        replay_buffer.in_waves = self.config.actor_rollout_ref.rollout.full_determinism
        return replay_buffer

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if issubclass(worker.__ray_metadata__.modified_class, ActorRolloutRefWorker):
                self.role_worker_mapping[role] = ray.remote(GeneratingWorker)

    def _setup(self) -> None:
        super()._setup()
        for name in ("actor_rollout_wg", "ref_policy_wg", "critic_wg"):
            if hasattr(self, name):
                setattr(self, name, StoredWorkers(getattr(self, name), STORE))

    def get_llm_client(self) -> Any:
        """The workers, which generate too."""
        return self.actor_rollout_wg

    def _step_once(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_failures_first():
            result = super()._step_once(*args, **kwargs)
        # Before the checkpoint of this step is saved.
        self.train_dataset.curriculum.observe(self.agent_loop_manager.take_training_results())
        return result

    def _validate(self) -> dict[str, float]:
        with self._rollout_failures_first():
            return super()._validate()

    @contextmanager
    def _rollout_failures_first(self) -> Iterator[None]:
        """Raise the failures of rollouts instead of verl's own, which only says that no group is left."""
        try:
            yield
        except Exception:
            self.agent_loop_manager.raise_failures()
            raise

    def on_sample_begin(self) -> None:
        super().on_sample_begin()
        self._num_redrawn = 0

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        """Draw prompts in place of groups that teach nothing: verl would go on without end, and ignores this limit."""
        self._num_redrawn += num_prompts
        filter_groups, batch_size = self.config.algorithm.filter_groups, self.config.data.train_batch_size
        limit = filter_groups.max_num_gen_batches
        if limit and batch_size + self._num_redrawn > limit * batch_size:
            raise RuntimeError(
                f"dynamic sampling drew {limit} batches of {batch_size} prompts for one, and in too few of them "
                f"completions differed in {filter_groups.metric!r}: take easier or harder problems, set "
                f"algorithm.filter_groups.metric=reward, or raise algorithm.filter_groups.max_num_gen_batches"
            )
        return super()._add_prompts_to_generate(num_prompts)

    def on_sample_end(self) -> None:
        super().on_sample_end()
        self.agent_loop_manager.raise_failures()

    def _init_dataloader(self) -> None:
        announce("making problems")
        super()._init_dataloader()
        splits = self.train_dataset.splits
        announce(
            f"{len(self.train_dataset)} training problems, {len(self.val_dataset)} for validation; "
            f"{len(splits.held_out)} held out"
        )
        for report in survey_spaces(splits.training.mixture, splits.held_out, num_sampled=_SURVEYED_PROBLEMS):
            announce(f"{'small problem space: ' if report.is_small else ''}{report}")
        announce("starting the model's training worker and vLLM")

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self._resumed_step = self.global_steps
        announce(f"continuing after step {self.global_steps}" if self.global_steps else "starting from the base model")

    def on_validate_begin(self) -> None:
        self._attach_progress()
        PROMPT_NAMES.begin(self.global_steps)
        super().on_validate_begin()

    def on_validate_end(self) -> None:
        super().on_validate_end()
        self.agent_loop_manager.raise_failures()
        # Validation takes long: a request to stop that arrived meanwhile needs no further step. Before the first step
        # there is nothing to save.
        if self.global_steps > self._resumed_step:
            self._save_if_stopping()

    def on_train_begin(self) -> None:
        self._attach_progress()
        super().on_train_begin()
        # Collecting garbage would look through all that has been imported, a million objects, every few steps.
        gc.collect()
        gc.freeze()
        STOP.steps_begin()

    def on_step_begin(self) -> None:
        # By now the last step is saved and logged.
        if self._stops_after == self.global_steps - 1:
            raise TrainingStopped(f"stopped after step {self._stops_after}")
        ACTIVITY.step = self.global_steps
        PROMPT_NAMES.begin(self.global_steps)
        super().on_step_begin()

    def on_step_end(self) -> None:
        self._save_if_stopping()
        super().on_step_end()

    def _save_if_stopping(self) -> None:
        if STOP.is_made:
            self._stops_after = self.global_steps
            if self._saved_step != self.global_steps and self.config.trainer.save_freq > 0:
                self._save_checkpoint()

    def _attach_progress(self) -> None:
        # The first hook after verl has made its tracking: before training if it validates first.
        if "progress" not in self.logger.logger:
            first_step = self._resumed_step + 1 if self._resumed_step else 0
            metrics_file = MetricsFile(Path(self.config.run_dir) / METRICS, first_step=first_step)
            progress = TrainingProgress(metrics_file, num_steps=self.total_training_steps, unlogged=self._unlogged)
            if self._unlogged:
                # Trackers take no null, and know the step and the time themselves.
                own = ("step", "time")
                known = {name: value for name, value in self._unlogged.items() if value is not None and name not in own}
                self.logger.log(data=known, step=self._resumed_step)
                # If the validation is repeated, TrainingProgress logs both in one line.
                if not self.config.trainer.val_before_train:
                    progress.log({}, step=self._resumed_step)
            self.logger.logger["progress"] = progress

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.fields = list(_ACTOR_FIELDS)
        return super()._update_actor(batch, metrics)

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.fields = list(_CRITIC_FIELDS)
        return super()._update_critic(batch, metrics)

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, Any], global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        metrics.update(by_dataset(_rollouts(batch)))
        metrics["train/prompts_crc"] = _prompts_crc(batch)
        metrics.update(self.train_dataset.curriculum.metrics())


def _prompts_crc(batch: Any) -> int:
    """The CRC-32 of the prompts' token ids in order: two runs that show the same one trained on the same problems."""
    prompts = STORE.column(batch.partition_id, batch.keys, "prompts")
    return zlib.crc32(b"".join(prompt.numpy().tobytes() for prompt in prompts))


def _rollouts(batch: Any) -> list[Rollout]:
    """The batch's own completions, without those verl repeats to fill up a mini-batch."""
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    names = ("uid", "data_source", "rm_scores", "extra_fields", "extra_info")
    columns = [STORE.column(batch.partition_id, keys, name) for name in names]
    return [
        Rollout(
            dataset=dataset,
            group=uid,
            reward=float(scores.sum()),
            details=extra_fields["reward_extra_info"],
            num_held_out=extra_info["num_held_out"],
            num_too_long=extra_info["num_too_long"],
        )
        for uid, dataset, scores, extra_fields, extra_info in zip(*columns, strict=True)
    ]


class WorkersAsServers:
    """The workers in the place of verl's vLLM servers: they generate themselves, and there are none."""

    @classmethod
    def create(cls, *, config: Any, worker_group: Any, **_: Any) -> "WorkersAsServers":
        return cls(worker_group, sleeps=config.actor_rollout_ref.rollout.free_cache_engine)

    def __init__(self, workers: Any, *, sleeps: bool):
        self._workers = workers
        self._sleeps = sleeps

    def get_replicas(self) -> list["WorkersAsServers"]:
        return [self]

    async def sleep(self) -> None:
        if self._sleeps:
            self._workers.release_rollout()

    def start_profile(self) -> None:
        """The workers are profiled themselves."""

    def stop_profile(self) -> None:
        """The workers are profiled themselves."""


class TaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner, with our trainer standing in for the synchronous one."""

    def run(self, config: Any) -> None:
        apply("trainer")
        super().run(config)
