"""Put the parts of a run that belong to every trainer over the trainer that `trainer.v1.trainer_mode` names."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from verl.trainer.main_ppo import TaskRunnerV1

from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.training.metrics import Rollout
from rgtrain.training.reasoning_gym_trainer import ReasoningGymTrainer
from rgtrain.training.rollout.groups import SampleKey
from rgtrain.training.stock_verl.queued_samples import completion_keys, group_results, read_columns, rollouts
from rgtrain.upstream.replacements import apply


class StockTrainer(ReasoningGymTrainer):
    """A trainer whose samples are in verl's TransferQueue. `over_verls` combines it with one of verl's trainers."""

    def _rollouts(self, batch: Any) -> list[Rollout]:
        return rollouts(batch)

    def _column(self, batch: Any, name: str) -> list[Any]:
        return read_columns(batch.partition_id, batch.keys, [name])[0]

    def _group_rewards(self, batch: Any) -> dict[str, list[float]]:
        rewards: dict[str, list[float]] = {}
        for rollout in rollouts(batch):
            rewards.setdefault(rollout.group, []).append(rollout.reward)
        return rewards

    def _samples(
        self, batch: Any, names: Sequence[str], *, groups: Container[str] | None = None
    ) -> dict[str, list[Any]]:
        keys = [key for key in completion_keys(batch) if groups is None or SampleKey.uid_of(key) in groups]
        columns = read_columns(batch.partition_id, keys, names)
        return dict(zip(names, columns, strict=True))

    def _training_results(self, batch: Any) -> list[GroupResult]:
        # A custom sampler of the user keeps no dropped groups.
        take_dropped = getattr(self.replay_buffer, "take_dropped", list)
        return [*take_dropped(), *group_results(rollouts(batch))]


def over_verls(original: Callable[[str], type]) -> Callable[[str], type]:
    """Wrap verl's lookup of trainers so that it returns the named trainer with our parts over it."""

    def get_trainer_cls(name: str) -> type:
        return combined(original(name))

    return get_trainer_cls


def combined(trainer: type) -> type:
    """Return a subclass of one of verl's trainers whose first base class is StockTrainer."""
    return type(f"Stock{trainer.__name__}", (StockTrainer, trainer), {})


class StockTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner, with our parts over its trainer."""

    def run(self, config: Any) -> None:
        """Replace the names that the trainer needs replaced, then run verl's trainer."""
        apply("trainer")
        apply("stock_trainer")
        super().run(config)
