"""The trainer of the fast engine: verl's synchronous trainer with our workers, rollout and sample store."""

import itertools
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from torch import Tensor
from verl.trainer.main_ppo import TaskRunnerV1
from verl.workers.engine_workers import ActorRolloutRefWorker

from rgtrain.checkpoints.metrics_file import METRICS, read_metrics
from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.metrics import Rollout
from rgtrain.training.packed_trainer import PackedTrainer
from rgtrain.training.rank_division import RankDivision
from rgtrain.training.reasoning_gym_trainer import ReasoningGymTrainer
from rgtrain.training.rollout.groups import SampleKey
from rgtrain.training.rollout.packed_columns import rows_of
from rgtrain.training.rollout.sample_store import MODEL_INPUTS, STORE, StoredWorkers
from rgtrain.training.rollout_alarm import RolloutAlarm, gap_limit, last_gap
from rgtrain.training.worker import GeneratingWorker
from rgtrain.upstream.replacements import apply

# The least time between two looks at finished groups during dynamic sampling, except after the last group. verl's
# default of 2 s is longer than small models need to generate a batch.
_POLL_SECONDS = 0.02

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


class FastTrainer(ReasoningGymTrainer, PackedTrainer):
    """verl's synchronous training loop with our workers, rollout and sample store."""

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
                setattr(self, name, StoredWorkers(getattr(self, name), STORE, self._division))

    @cached_property
    def _division(self) -> RankDivision:
        """The division of batches over ranks."""
        workers, config = self.actor_rollout_wg, self.config.actor_rollout_ref
        layout, model = workers.trained_model()[0]
        return RankDivision.of_run(
            self._run_config,
            num_ranks=workers.world_size,
            layout=layout,
            model=model,
            log_prob_tokens={
                "compute_log_prob": config.rollout.log_prob_max_token_len_per_gpu,
                "compute_ref_log_prob": config.ref.log_prob_max_token_len_per_gpu,
            },
        )

    def _balance_batch(
        self, batch: Any, metrics: dict[str, Any], logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> Any:
        """Keep the order of drawing, because each call of the workers divides the batch by its own mini-batches."""
        metrics.update(self._division.metrics(batch, prefix=logging_prefix))
        return batch

    def get_llm_client(self) -> Any:
        """Return the workers, because they also generate."""
        return self.actor_rollout_wg

    def _step_once(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self._rollout_failures_first():
            batch = super()._step_once(metrics, *args, **kwargs)
        if (idle_share := self.agent_loop_manager.engine_idle_share) is not None:
            metrics["rollout/engine_idle_share"] = idle_share
        return batch

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

    def on_sample_end(self) -> None:
        """Raise failures of this step's rollouts."""
        super().on_sample_end()
        self.agent_loop_manager.raise_failures()

    def on_validate_begin(self) -> None:
        """Begin the names of validation prompts."""
        PROMPT_NAMES.begin(self.global_steps)
        super().on_validate_begin()

    def on_validate_end(self) -> None:
        """Raise failures of the validation's rollouts."""
        self.agent_loop_manager.raise_failures()
        super().on_validate_end()

    def on_step_begin(self) -> None:
        """Begin the names of the step's prompts."""
        super().on_step_begin()
        PROMPT_NAMES.begin(self.global_steps)

    def _submit_batch_to_rollout(self, batch: Any) -> int:
        num_prompts = super()._submit_batch_to_rollout(batch)
        # Shuffled indices are not known in advance.
        if not self.config.data.shuffle and self.global_steps < self.total_training_steps:
            self.train_dataset.make_ahead(self.config.data.train_batch_size)
        return num_prompts

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.fields = list(_ACTOR_FIELDS)
        updated = super()._update_actor(batch, metrics)
        # Before the step can be saved.
        self._rollout_alarm.observe(metrics, step=self.global_steps)
        return updated

    @cached_property
    def _rollout_alarm(self) -> RolloutAlarm:
        records = read_metrics(Path(self.config.run_dir) / METRICS)[0] if self._resumed_step else []
        limit = gap_limit(self._run_config)
        return RolloutAlarm(limit, previous=last_gap(records), say=announce)

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.fields = list(_CRITIC_FIELDS)
        return super()._update_critic(batch, metrics)

    def _rollouts(self, batch: Any) -> list[Rollout]:
        return _rollouts(batch)

    def _group_rewards(self, batch: Any) -> dict[str, list[float]]:
        rewards: dict[str, list[float]] = {}
        for key, reward in zip(batch.keys, STORE.rewards(batch.partition_id, batch.keys).tolist(), strict=True):
            rewards.setdefault(SampleKey.uid_of(key), []).append(reward)
        return rewards

    def _column(self, batch: Any, name: str) -> list[Any]:
        return STORE.column(batch.partition_id, batch.keys, name)

    def _samples(
        self, batch: Any, names: Sequence[str], *, groups: Container[str] | None = None
    ) -> dict[str, list[Any]]:
        keys = [key for key in batch.keys if groups is None or SampleKey.uid_of(key) in groups]
        columns = STORE.columns(batch.partition_id, keys, names)
        return {name: rows_of(columns[name]) for name in names}

    def _prompt_bytes(self, batch: Any) -> list[bytes]:
        return self._packed(batch, "prompts")["prompts"].row_bytes()

    def _sampled_log_probs(self, batch: Any) -> Tensor:
        return self._packed(batch, "rollout_log_probs")["rollout_log_probs"].dense()

    def _training_results(self, batch: Any) -> list[GroupResult]:
        # In the order of drawing, with the groups that dynamic sampling dropped.
        return self.agent_loop_manager.take_training_results()


def _rollouts(batch: Any) -> list[Rollout]:
    """Return the completions of the batch."""
    names = ("uid", "data_source", "extra_fields", "extra_info", "responses")
    columns = STORE.columns(batch.partition_id, batch.keys, names)
    rewards = STORE.rewards(batch.partition_id, batch.keys).tolist()
    hashes = columns.pop("responses").row_hashes()
    return [
        Rollout(
            dataset=dataset,
            group=uid,
            reward=reward,
            details=extra_fields["reward_extra_info"],
            num_held_out=extra_info["num_held_out"],
            num_too_long=extra_info["num_too_long"],
            level=extra_info["level"],
            response_hash=response_hash,
        )
        for uid, dataset, extra_fields, extra_info, reward, response_hash in zip(
            *columns.values(), rewards, hashes, strict=True
        )
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


class FastTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner with our trainer in place of the synchronous one."""

    def run(self, config: Any) -> None:
        """Replace the names that the trainer needs replaced, then run verl's trainer."""
        apply("trainer")
        apply("fast_trainer")
        super().run(config)
