"""verl's synchronous trainer with the project's metrics and progress, put into place through its hooks."""

from pathlib import Path
from typing import Any

import ray
import transfer_queue as tq
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from rgtrain.problems.heldout import survey_spaces
from rgtrain.verl_plugin import vllm_server
from rgtrain.verl_plugin.metrics import Rollout, by_dataset
from rgtrain.verl_plugin.progress import MetricsFile, Progress, announce
from rgtrain.verl_plugin.rollout import as_list

# verl polls for finished rollouts every 2 s, longer than small models need to generate them.
_POLL_SECONDS = 0.05
# Enough to notice a small problem space, and seconds at most even where a problem takes a tenth of one to make.
_SURVEYED_PROBLEMS = 200


# What the actor's update reads: fetching everything else, above all what is no tensor, took longer than updating.
_ACTOR_FIELDS = (
    *("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids"),
    *("rollout_log_probs", "old_log_probs", "advantages"),
)


class ReasoningGymTrainer(PPOTrainerSync):
    """verl's training loop, untouched; adds metrics by dataset, metrics.jsonl and progress lines."""

    def _build_replay_buffer(self) -> Any:
        replay_buffer = super()._build_replay_buffer()
        replay_buffer.poll_interval = _POLL_SECONDS
        return replay_buffer

    def get_llm_client(self) -> list[Any]:
        """The vLLM servers themselves, to whom our rollout sends whole groups in turn."""
        return self.llm_server_manager.server_handles

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
        super().on_validate_begin()

    def on_validate_end(self) -> None:
        super().on_validate_end()
        self.agent_loop_manager.raise_failures()

    def on_train_begin(self) -> None:
        self._attach_progress()
        super().on_train_begin()

    def _attach_progress(self) -> None:
        # The first hook after verl has made its tracking: before training if it validates first.
        if "progress" not in self.logger.logger:
            first_step = self._resumed_step + 1 if self._resumed_step else 0
            metrics_file = MetricsFile(Path(self.config.run_dir) / "metrics.jsonl", first_step=first_step)
            self.logger.logger["progress"] = Progress(metrics_file, num_steps=self.total_training_steps)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        fields = [*_ACTOR_FIELDS, *(["ref_log_prob"] if self.use_reference_policy else [])]
        if (self.config.algorithm.rollout_correction or {}).get("rollout_is"):
            fields.append("rollout_is_weights")
        batch.fields = fields
        try:
            return super()._update_actor(batch, metrics)
        finally:
            batch.fields = None

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        metrics.update(by_dataset(_rollouts(batch)))


def _rollouts(batch: Any) -> list[Rollout]:
    """The batch's own completions, without those verl repeats to fill up a mini-batch."""
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    fields = ["uid", "data_source", "rm_scores", "extra_fields", "extra_info"]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
    rewards = data["rm_scores"].to_padded_tensor(0.0).sum(dim=1).tolist()
    columns = [as_list(data[field]) for field in ("uid", "data_source", "extra_fields", "extra_info")]
    return [
        Rollout(
            dataset=dataset,
            group=uid,
            reward=reward,
            details=extra_fields["reward_extra_info"],
            num_held_out=extra_info["num_held_out"],
            num_too_long=extra_info["num_too_long"],
        )
        for reward, uid, dataset, extra_fields, extra_info in zip(rewards, *columns, strict=True)
    ]


def _balanced_partitions(workloads: list[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
    """verl's, but one partition is all there is: its heap of every sample took half a second to say so."""
    if k_partitions == 1:
        return [list(range(len(workloads)))]
    return get_seqlen_balanced_partitions(workloads, k_partitions=k_partitions, equal_size=equal_size)


# Where verl calls it by another name, the replacement would do nothing.
assert trainer_base.get_seqlen_balanced_partitions is get_seqlen_balanced_partitions
trainer_base.get_seqlen_balanced_partitions = _balanced_partitions


@ray.remote
class TaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner, with our trainer standing in for the synchronous one."""

    def run(self, config: Any) -> None:
        # Under the name "sync", because verl asks for that name in many places to decide what to do.
        trainer_base.TRAINER_REGISTRY["sync"] = ReasoningGymTrainer
        vllm_server.register()
        super().run(config)
