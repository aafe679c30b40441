"""verl's synchronous trainer, with advantages and metrics computed from packed columns.

verl pads every column to the longest row and takes samples out of them one by one. With thousands of samples, that
takes longer than all arithmetic.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.metric_utils import compute_throughout_metrics, compute_timing_metrics
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from rgtrain.training.batch_metrics import data_metrics, staleness_metrics
from rgtrain.training.rollout.group_advantages import grpo_advantages, rloo_advantages
from rgtrain.training.rollout.packed_columns import PackedBatch, PackedColumn, part
from rgtrain.training.rollout.sample_store import STORE

# The estimators whose advantages are equal for all tokens of a response, and those that loop over tokens.
_BY_RESPONSE, _BY_TOKEN = ("grpo", "rloo"), ("gae", "reinforce_plus_plus")
_METRIC_FIELDS = (
    *("prompts", "responses", "response_mask", "values", "advantages", "returns", "rm_scores"),
    *("token_level_rewards", "num_turns"),
)


class PackedTrainer(PPOTrainerSync):
    """verl's trainer with the same results from packed columns. Other algorithms take verl's own way."""

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        algorithm = self.config.algorithm
        correction = algorithm.get("rollout_correction")
        is_corrected = correction is not None and not correction.get("bypass_mode", False)
        if (
            algorithm.adv_estimator not in (*_BY_RESPONSE, *_BY_TOKEN)
            or algorithm.get("use_pf_ppo", False)
            or (is_corrected and self._packed(batch, "rollout_log_probs"))
        ):
            return super()._compute_advantage(batch, metrics)
        names = ("response_mask", "rm_scores", "values", "old_log_probs", "ref_log_prob")
        columns = self._packed(batch, *names)
        written: dict[str, PackedColumn] = {}
        rewards = columns["rm_scores"]
        if algorithm.use_kl_in_reward:
            rewards = written["token_level_rewards"] = self._rewards_with_kl(columns, metrics)
        if algorithm.adv_estimator in _BY_RESPONSE:
            written["advantages"] = written["returns"] = self._advantages_by_response(batch, rewards, columns)
        else:
            written["advantages"], written["returns"] = self._advantages_by_token(rewards, columns)
        STORE.put_columns(batch.partition_id, batch.keys, written)
        return KVBatchMeta(keys=batch.keys, tags=batch.tags, partition_id=batch.partition_id)

    def _packed(self, batch: KVBatchMeta, *names: str) -> dict[str, PackedColumn]:
        columns = STORE.columns(batch.partition_id, batch.keys, names)
        return {name: column for name, column in columns.items() if isinstance(column, PackedColumn)}

    def _rewards_with_kl(self, columns: dict[str, PackedColumn], metrics: dict[str, Any]) -> PackedColumn:
        """Subtract the KL divergence from each token's reward, as verl's `apply_kl_penalty`."""
        scores, mask, controller = columns["rm_scores"], columns["response_mask"], self.kl_ctrl_in_reward
        log_probs, of_reference = columns["old_log_probs"].dense(), columns["ref_log_prob"].dense()
        kl = core_algos.kl_penalty(log_probs, of_reference, kl_penalty=self.config.algorithm.kl_penalty) * mask.dense()
        coefficient = controller.value
        of_rows = PackedColumn("tokens", kl, scores.lengths, kl.dtype).row_sums() / (mask.row_sums() + 1e-8)
        mean_kl = float(of_rows.mean())
        controller.update(current_kl=mean_kl, n_steps=len(scores))
        metrics["actor/reward_kl_penalty"] = mean_kl
        metrics["actor/reward_kl_penalty_coeff"] = coefficient
        rewards = scores.dense() - coefficient * kl
        return PackedColumn("tokens", rewards, scores.lengths, rewards.dtype)

    def _advantages_by_response(
        self, batch: KVBatchMeta, rewards: PackedColumn, columns: dict[str, PackedColumn]
    ) -> PackedColumn:
        algorithm, scores, mask = self.config.algorithm, rewards.row_sums(), columns["response_mask"]
        groups = STORE.column(batch.partition_id, batch.keys, "uid")
        if algorithm.adv_estimator == "rloo":
            advantages = rloo_advantages(scores, groups)
        else:
            by_deviation = algorithm.get("norm_adv_by_std_in_grpo", True)
            advantages = grpo_advantages(scores, groups, by_deviation=by_deviation)
        column = PackedColumn("constant", advantages, mask.lengths, advantages.dtype)
        if mask.form == "constant":
            return PackedColumn("constant", advantages * mask.values, mask.lengths, advantages.dtype)
        return PackedColumn("tokens", column.dense() * mask.dense(), mask.lengths, advantages.dtype)

    def _advantages_by_token(
        self, rewards: PackedColumn, columns: dict[str, PackedColumn]
    ) -> tuple[PackedColumn, PackedColumn]:
        algorithm, mask = self.config.algorithm, columns["response_mask"]
        inputs = {"token_level_rewards": _by_position(rewards), "response_mask": _by_position(mask)}
        if algorithm.adv_estimator == "gae":
            values = _by_position(columns["values"])
            found = core_algos.compute_gae_advantage_return(
                values=values, gamma=algorithm.gamma, lam=algorithm.lam, **inputs
            )
        else:
            estimate = core_algos.get_adv_estimator_fn(algorithm.adv_estimator)
            found = estimate(config=algorithm, **inputs)
        advantages, returns = (_packed_rows(padded, mask.lengths) for padded in found)
        return advantages, returns

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, Any], global_steps: int, epoch: int
    ) -> None:
        rollout, mtp = self.config.actor_rollout_ref.rollout, self.config.actor_rollout_ref.model.get("mtp")
        if rollout.get("moe_load_balance_metrics_interval", 0) > 0 or (mtp and mtp.enable and mtp.enable_rollout):
            super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
            return
        columns = STORE.columns(batch.partition_id, batch.keys, _METRIC_FIELDS)
        lengths = {name: columns[f"{name}s"].lengths for name in ("prompt", "response")}
        own = [number for number, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        tags = batch.tags
        if own and len(own) < len(tags):
            columns, tags = part(PackedBatch(columns), own).columns, [tags[number] for number in own]
        metrics |= {"training/global_step": global_steps, "training/epoch": epoch}
        longest = {f"longest_{name}": int(of_rows.max()) for name, of_rows in lengths.items()}
        metrics |= data_metrics(columns, **longest, use_critic=self.use_critic)
        # verl counts the samples that fill up a batch here.
        counted = SimpleNamespace(
            batch={f"{name}_length": of_rows.float() for name, of_rows in lengths.items()},
            meta_info={"global_token_num": (lengths["prompt"] + lengths["response"]).tolist()},
        )
        metrics |= compute_timing_metrics(batch=counted, timing_raw=timing_raw)
        num_gpus = self._get_n_gpus_for_throughput()
        metrics |= compute_throughout_metrics(batch=counted, timing_raw=timing_raw, n_gpus=num_gpus)
        metrics |= staleness_metrics(tags, step=global_steps)


def _by_position(column: PackedColumn) -> Tensor:
    """Return a column as [rows, tokens] padded with zeros, in which the tokens at one position lie side by side.

    verl's loops take one position at a time.
    """
    if column.dtype == torch.int64:
        # Masks take an eighth of the memory as bytes.
        column = PackedColumn(column.form, column.values, column.lengths, torch.int8)
    return column.nested.to_padded_tensor(0).t().contiguous().t()


def _packed_rows(padded: Tensor, lengths: Tensor) -> PackedColumn:
    rows = [row[:length] for row, length in zip(padded.contiguous(), lengths.tolist(), strict=True)]
    return PackedColumn("tokens", torch.cat(rows), lengths, padded.dtype)
