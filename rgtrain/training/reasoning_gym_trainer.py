"""The parts of a run that belong to every trainer: problems, curriculum, metrics, progress and stopping."""

import sys
import zlib
from abc import abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rgtrain.checkpoints.metrics_file import METRICS, read_metrics
from rgtrain.checkpoints.rollout_files import ROLLOUTS, RolloutFiles
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.machine.garbage_collection import collect_as_usual
from rgtrain.problems.heldout import survey_spaces
from rgtrain.run_health import HealthMonitor
from rgtrain.training.checkpointing import CheckpointingTrainer
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.metrics import Rollout, by_dataset
from rgtrain.training.progress import MetricsFile, TrainingProgress
from rgtrain.training.rollout_keeper import SAMPLE_FIELDS, TRAINING_FIELDS, RolloutKeeper, ScoredSample, scored_samples
from rgtrain.training.trackers import online_address

# Enough to notice a small problem space. Even slow datasets, with 0.1 s per problem, take no more than 20 s.
_SURVEYED_PROBLEMS = 200


class ReasoningGymTrainer(CheckpointingTrainer):
    """A trainer with the curriculum, metrics by dataset, progress lines, checkpoints and stopping.

    It is combined with one of verl's trainers, which then comes after it among the base classes. Subclasses read the
    samples of a batch, because the engines store them in different places.
    """

    # The last step of this process, set once the run was asked to stop.
    _stops_after: int | None = None
    # verl's sampler of finished groups.
    replay_buffer: Any
    # The tokenizer of the model, which verl sets.
    tokenizer: Any
    # The number of prompts that dynamic sampling has drawn again in this step.
    _num_redrawn = 0

    @abstractmethod
    def _rollouts(self, batch: Any) -> list[Rollout]:
        """Return the completions of `batch`, without the copies with which verl fills up a mini-batch."""

    @abstractmethod
    def _column(self, batch: Any, name: str) -> list[Any]:
        """Return the values of a field of the samples, in the order of `batch`."""

    @abstractmethod
    def _group_rewards(self, batch: Any) -> dict[str, list[float]]:
        """Return the rewards of the completions of each group of `batch` by its uid, without the copies."""

    @abstractmethod
    def _samples(
        self, batch: Any, names: Sequence[str], *, groups: Container[str] | None = None
    ) -> dict[str, list[Any]]:
        """Return fields of the completions of some groups, or of all, one list per field, without the copies."""

    def _prompt_bytes(self, batch: Any) -> list[bytes]:
        """Return the bytes of the token ids of each sample's prompt, as 64-bit integers."""
        return [ids.numpy().tobytes() for ids in self._column(batch, "prompts")]

    def _sampled_log_probs(self, batch: Any) -> torch.Tensor:
        """Return vLLM's log-probabilities of all sampled tokens of `batch`, without the copies, [tokens]."""
        return torch.cat(self._samples(batch, ["rollout_log_probs"])["rollout_log_probs"])

    @abstractmethod
    def _training_results(self, batch: Any) -> list[GroupResult]:
        """Return the training groups that were scored since the last call. `batch` was trained on."""

    def _step_once(self, *args: Any, **kwargs: Any) -> Any:
        batch = super()._step_once(*args, **kwargs)
        # The checkpoint of this step, which is saved later, includes the new state.
        self.train_dataset.curriculum.observe(self._training_results(batch))
        if self._trained is not None:
            self._trained.add(extra_info["digest"] for extra_info in self._column(batch, "extra_info"))
        return batch

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Make a training step, and keep some of its rollouts.

        Args:
            *args: verl's arguments.
            **kwargs: verl's arguments.

        Returns:
            The metadata of the step's samples.
        """
        batch = super().step(*args, **kwargs)
        if self._rollout_keeper is not None:
            self._rollout_keeper.keep_training(
                self._group_rewards(batch),
                lambda groups: self._scored_samples(batch, TRAINING_FIELDS, groups=groups),
                step=self.global_steps,
            )
        return batch

    def on_sample_begin(self) -> None:
        """Reset the number of prompts that dynamic sampling has drawn again."""
        super().on_sample_begin()
        self._num_redrawn = 0

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        """Draw prompts. In the synchronous mode, they replace groups without a signal, up to a limit that verl ignores.

        Args:
            num_prompts: The number of prompts to draw.

        Returns:
            The number of drawn prompts.

        Raises:
            RuntimeError: The step has drawn more than `algorithm.filter_groups.max_num_gen_batches` batches.
        """
        self._num_redrawn += num_prompts
        filter_groups, batch_size = self.config.algorithm.filter_groups, self.config.data.train_batch_size
        # The asynchronous modes also draw their usual prompts in this way.
        limit = filter_groups.max_num_gen_batches if self.trainer_mode == "sync" else 0
        if limit and batch_size + self._num_redrawn > limit * batch_size:
            raise RuntimeError(
                f"dynamic sampling drew {limit} batches of {batch_size} prompts for one step, but too few groups had "
                f"completions that differ in {filter_groups.metric!r}; use easier or harder problems, set "
                f"algorithm.filter_groups.metric=reward, or raise algorithm.filter_groups.max_num_gen_batches"
            )
        return super()._add_prompts_to_generate(num_prompts)

    def _init_dataloader(self) -> None:
        announce("making problems")
        super()._init_dataloader()
        splits = self.train_dataset.splits
        announce(
            f"{len(self.train_dataset)} training problems, {len(self.val_dataset)} for validation; "
            f"{len(splits.held_out)} held out"
        )
        if self._run_config.trainer.val_only:
            announce("starting the model's worker and vLLM")
            return
        for report in survey_spaces(splits.training.mixture, splits.held_out, num_sampled=_SURVEYED_PROBLEMS):
            announce(f"{'small problem space: ' if report.is_small else ''}{report}")
        announce("starting the model's training worker and vLLM")

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self._resumed_step = self.global_steps
        announce(f"continuing after step {self.global_steps}" if self.global_steps else "starting from the base model")

    def on_validate_begin(self) -> None:
        """Prepare logging."""
        self._attach_progress()
        super().on_validate_begin()

    def on_validate_end(self) -> None:
        """Save the last step if the run was asked to stop."""
        super().on_validate_end()
        # Validation takes long, so a stop does not wait for another step. Before the first step, there is nothing to
        # save.
        if self.global_steps > self._resumed_step:
            self._save_if_stopping()

    def on_train_begin(self) -> None:
        """Prepare logging, and note that the run can be saved from now on."""
        self._attach_progress()
        # Trainers with separate GPUs take their first rows now.
        self.train_dataset.begin_step(self.global_steps)
        super().on_train_begin()
        collect_as_usual()
        STOP.steps_begin()

    def on_step_begin(self) -> None:
        """Begin a step.

        Raises:
            TrainingStopped: The run was asked to stop, and its last step is saved and logged.
        """
        if self._stops_after == self.global_steps - 1:
            self._finish_rollouts()
            raise TrainingStopped(f"stopped after step {self._stops_after}")
        ACTIVITY.step = self.global_steps
        self.train_dataset.begin_step(self.global_steps)
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

    def _validate(self) -> dict[str, float]:
        samples: list[ScoredSample] = []
        sampler = self.replay_buffer
        if self._rollout_keeper is not None:
            # verl removes the samples before it returns.
            self.replay_buffer = _ObservedSampler(sampler, lambda batch: samples.extend(self._scored_samples(batch)))
        try:
            # verl does not time the validation before training.
            with ACTIVITY.within("testing"), self._without_unused_texts():
                metrics = super()._validate()
        finally:
            self.replay_buffer = sampler
        if self._rollout_keeper is not None:
            self._rollout_keeper.keep_validation(samples, step=self.global_steps)
        if self.global_steps == 0:
            self._health.observe(metrics, step=0)
        return metrics

    @contextmanager
    def _without_unused_texts(self) -> Iterator[None]:
        """Let verl's validation decode no texts unless it logs them, because it decodes one sample after another."""
        trainer, tokenizer = self.config.trainer, self.tokenizer
        if not trainer.get("log_val_generations") and not trainer.get("validation_data_dir"):
            self.tokenizer = _SilentTokenizer(tokenizer.pad_token_id)
        try:
            yield
        finally:
            self.tokenizer = tokenizer

    def _scored_samples(
        self, batch: Any, further_names: Sequence[str] = (), *, groups: Container[str] | None = None
    ) -> list[ScoredSample]:
        names = [*SAMPLE_FIELDS, *further_names]
        if self._run_config.rollout.calculate_log_probs:
            names.append("rollout_log_probs")
        return scored_samples(self._samples(batch, names, groups=groups))

    @cached_property
    def _run_config(self) -> RunConfig:
        return RunConfig.of(plain_config(self.config))

    @cached_property
    def _rollout_keeper(self) -> RolloutKeeper | None:
        """The writer of `rollouts/`, or None if the run keeps none."""
        config = self._run_config
        if config.rollouts.max_gb == 0:
            return None
        first_step = self._resumed_step + 1 if self._resumed_step else 0
        files = RolloutFiles(
            config.run_dir / ROLLOUTS,
            max_bytes=int(config.rollouts.max_gb * 1e9),
            # A validation alone repeats no step.
            first_step=sys.maxsize if config.trainer.val_only else first_step,
        )
        return RolloutKeeper(
            files,
            config.rollouts,
            tokenizer=self.tokenizer,
            max_response_length=config.data.max_response_length,
            seed=config.data.seed,
            trackers=self.logger.logger,
        )

    def _shutdown_dump_executor(self) -> None:
        super()._shutdown_dump_executor()
        self._finish_rollouts()

    def _finish_rollouts(self) -> None:
        # Without a step or a validation, there is no keeper yet.
        if (keeper := vars(self).get("_rollout_keeper")) is not None:
            keeper.wait()

    def _attach_progress(self) -> None:
        # Called from the first hook after verl has created its tracking, which may be validation or training.
        if "progress" not in self.logger.logger:
            if address := online_address(self.logger.logger):
                announce(f"Weights & Biases: {address}")
            path = Path(self.config.run_dir) / METRICS
            if self._run_config.trainer.val_only:
                self.logger.logger["progress"] = self._validation_progress(path)
                return
            first_step = self._resumed_step + 1 if self._resumed_step else 0
            metrics_file = MetricsFile(path, first_step=first_step)
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

    def _validation_progress(self, path: Path) -> TrainingProgress:
        """Return the progress of a validation alone, whose metrics are added to the line of its step."""
        step = self._resumed_step
        logged = [record for record in read_metrics(path)[0] if record["step"] == step]
        metrics_file = MetricsFile(path, first_step=step, last_step=step)
        return TrainingProgress(
            metrics_file, num_steps=step, unlogged=logged[-1] if logged else None, shows_steps=False
        )

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, Any], global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        metrics.update(by_dataset(self._rollouts(batch)))
        # The CRC-32 of the prompts' token ids. Equal values mean equal training problems. verl's samples are in random
        # order.
        metrics["train/prompts_crc"] = zlib.crc32(b"".join(sorted(self._prompt_bytes(batch))))
        metrics.update(self.train_dataset.curriculum.metrics())
        if self._run_config.rollout.calculate_log_probs:
            metrics["rollout/sampled_entropy"] = -float(self._sampled_log_probs(batch).mean())
        for warning in self._health.observe(metrics, step=global_steps):
            metrics[f"health/{warning.name}"] = 1.0
            # A step's metrics are computed twice if it is saved.
            if (warning.name, global_steps) not in self._announced:
                self._announced.add((warning.name, global_steps))
                announce(f"step {global_steps}: {warning}")

    @cached_property
    def _announced(self) -> set[tuple[str, int]]:
        """The announced warnings with their steps."""
        return set()

    @cached_property
    def _health(self) -> HealthMonitor:
        data = self._run_config.data
        monitor = HealthMonitor(num_validation_problems=data.validation_size, mixture=data.mixture)
        records = read_metrics(Path(self.config.run_dir) / METRICS)[0] if self._resumed_step else []
        for record in records:
            if record["step"] <= self._resumed_step:
                monitor.observe(record, step=record["step"])
        return monitor


class _SilentTokenizer:
    """A tokenizer whose texts are empty."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return ""


class _ObservedSampler:
    """verl's sampler of finished groups, whose samples `observe` sees first."""

    def __init__(self, sampler: Any, observe: Callable[[Any], None]):
        self._sampler = sampler
        self._observe = observe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        batch, metrics = self._sampler.sample(*args, **kwargs)
        self._observe(batch)
        return batch, metrics
