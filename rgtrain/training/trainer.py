"""A subclass of verl's synchronous trainer with our workers, sample store, metrics, progress and curriculum."""

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

# verl's default of 2 s is longer than small models need to generate a batch.
_POLL_SECONDS = 0.02
# Enough to notice a small problem space. Even slow datasets, with 0.1 s per problem, take no more than 20 s.
_SURVEYED_PROBLEMS = 200

# The fields that updates read. All are tensors: other objects would take longer to send than all tensors together.
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
    """Names for prompts that sort in the order of drawing and are the same in every run of a configuration.

    Replaces the module `uuid` in verl's trainer. verl sorts the dumped samples by these names, and random names would
    put them into random order.
    """

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from 0 for the prompts of `step`, or of the validation after it."""
        self._step, self._numbers = step, itertools.count()

    def uuid4(self) -> str:
        """Return the next name."""
        return f"{self._step:06}-{next(self._numbers):06}"


PROMPT_NAMES = _PromptNames()


class ReasoningGymTrainer(CheckpointingTrainer):
    """verl's training loop with our workers and sample store, plus metrics by dataset, progress and the curriculum."""

    # The last step of this process, set once the run was asked to stop.
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
        """Return the workers, because they also generate."""
        return self.actor_rollout_wg

    def _step_once(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_failures_first():
            result = super()._step_once(*args, **kwargs)
        # The checkpoint of this step, which is saved later, includes the new state.
        self.train_dataset.curriculum.observe(self.agent_loop_manager.take_training_results())
        return result

    def _validate(self) -> dict[str, float]:
        with self._rollout_failures_first():
            return super()._validate()

    @contextmanager
    def _rollout_failures_first(self) -> Iterator[None]:
        """Raise the failures of rollouts instead of verl's resulting error, which only says that no group is left."""
        try:
            yield
        except Exception:
            self.agent_loop_manager.raise_failures()
            raise

    def on_sample_begin(self) -> None:
        """Reset the number of prompts that dynamic sampling has drawn again."""
        super().on_sample_begin()
        self._num_redrawn = 0

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        """Draw prompts that replace groups without a signal, up to a limit that verl itself ignores.

        Args:
            num_prompts: The number of prompts to draw.

        Returns:
            The number of drawn prompts.

        Raises:
            RuntimeError: The step has drawn more than `algorithm.filter_groups.max_num_gen_batches` batches.
        """
        self._num_redrawn += num_prompts
        filter_groups, batch_size = self.config.algorithm.filter_groups, self.config.data.train_batch_size
        limit = filter_groups.max_num_gen_batches
        if limit and batch_size + self._num_redrawn > limit * batch_size:
            raise RuntimeError(
                f"dynamic sampling drew {limit} batches of {batch_size} prompts for one step, but too few groups had "
                f"completions that differ in {filter_groups.metric!r}; use easier or harder problems, set "
                f"algorithm.filter_groups.metric=reward, or raise algorithm.filter_groups.max_num_gen_batches"
            )
        return super()._add_prompts_to_generate(num_prompts)

    def on_sample_end(self) -> None:
        """Raise failures of this step's rollouts."""
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
        """Prepare logging and the names of validation prompts."""
        self._attach_progress()
        PROMPT_NAMES.begin(self.global_steps)
        super().on_validate_begin()

    def on_validate_end(self) -> None:
        """Raise failures of the validation's rollouts, and save the last step if the run was asked to stop."""
        super().on_validate_end()
        self.agent_loop_manager.raise_failures()
        # Validation takes long, so a stop does not wait for another step. Before the first step, there is nothing to
        # save.
        if self.global_steps > self._resumed_step:
            self._save_if_stopping()

    def on_train_begin(self) -> None:
        """Prepare logging, and note that the run can be saved from now on."""
        self._attach_progress()
        super().on_train_begin()
        # Otherwise every garbage collection would scan a million objects of imported modules.
        gc.collect()
        gc.freeze()
        STOP.steps_begin()

    def on_step_begin(self) -> None:
        """Begin a step.

        Raises:
            TrainingStopped: The run was asked to stop, and its last step is saved and logged.
        """
        if self._stops_after == self.global_steps - 1:
            raise TrainingStopped(f"stopped after step {self._stops_after}")
        ACTIVITY.step = self.global_steps
        PROMPT_NAMES.begin(self.global_steps)
        super().on_step_begin()

    def on_step_end(self) -> None:
        """Save the step if the run was asked to stop."""
        self._save_if_stopping()
        super().on_step_end()

    def _save_if_stopping(self) -> None:
        if STOP.is_made:
            self._stops_after = self.global_steps
            if self._saved_step != self.global_steps and self.config.trainer.save_freq > 0:
                self._save_checkpoint()

    def _attach_progress(self) -> None:
        # Called from the first hook after verl has created its tracking, which may be validation or training.
        if "progress" not in self.logger.logger:
            first_step = self._resumed_step + 1 if self._resumed_step else 0
            metrics_file = MetricsFile(Path(self.config.run_dir) / METRICS, first_step=first_step)
            progress = TrainingProgress(metrics_file, num_steps=self.total_training_steps, unlogged=self._unlogged)
            if self._unlogged:
                # Trackers do not accept None, and record the step and the time themselves.
                metrics = {
                    name: value
                    for name, value in self._unlogged.items()
                    if value is not None and name not in ("step", "time")
                }
                self.logger.log(data=metrics, step=self._resumed_step)
                # If the validation is repeated, TrainingProgress writes both into one line.
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
    """Return the CRC-32 of the prompts' token ids in order. Equal values mean equal training problems."""
    prompts = STORE.column(batch.partition_id, batch.keys, "prompts")
    return zlib.crc32(b"".join(prompt.numpy().tobytes() for prompt in prompts))


def _rollouts(batch: Any) -> list[Rollout]:
    """Return the completions of the batch, without the copies with which verl fills up a mini-batch."""
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
    """The workers with the interface of verl's manager of vLLM servers. They generate themselves, without servers.

    Args:
        workers: The worker group.
        sleeps: Whether `sleep` frees vLLM's memory.
    """

    @classmethod
    def create(cls, *, config: Any, worker_group: Any, **_: Any) -> "WorkersAsServers":
        """Create the manager with verl's arguments."""
        return cls(worker_group, sleeps=config.actor_rollout_ref.rollout.free_cache_engine)

    def __init__(self, workers: Any, *, sleeps: bool):
        self._workers = workers
        self._sleeps = sleeps

    def get_replicas(self) -> list["WorkersAsServers"]:
        """Return this manager as the only replica."""
        return [self]

    async def sleep(self) -> None:
        """Free vLLM's memory for training, if the configuration says so."""
        if self._sleeps:
            self._workers.release_rollout()

    def start_profile(self) -> None:
        """Do nothing, because verl profiles the workers themselves."""

    def stop_profile(self) -> None:
        """Do nothing, because verl profiles the workers themselves."""


class TaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner with our trainer in place of the synchronous one."""

    def run(self, config: Any) -> None:
        """Replace the names that the trainer needs replaced, then run verl's trainer."""
        apply("trainer")
        super().run(config)
