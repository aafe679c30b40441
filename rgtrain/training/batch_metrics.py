"""Compute verl's metrics of a batch from packed columns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rgtrain.training.rollout.packed_columns import Column, PackedColumn


def data_metrics(
    columns: Mapping[str, Column], *, longest_prompt: int, longest_response: int, use_critic: bool
) -> dict[str, float]:
    """Compute the metrics of verl's `compute_data_metrics` without padding the columns.

    Args:
        columns: The columns of the samples, without those that fill up a batch: prompts, responses, response_mask,
            rm_scores, advantages, returns, num_turns, with a critic values, and with a KL reward token_level_rewards.
        longest_prompt: The length of the longest prompt, including samples that fill up a batch, as in verl.
        longest_response: The length of the longest response, likewise.
        use_critic: Whether to add the metrics of the critic.

    Returns:
        The metrics by verl's names.
    """
    packed = {name: column for name, column in columns.items() if isinstance(column, PackedColumn)}
    prompts, responses = packed["prompts"].lengths.float(), packed["responses"].lengths.float()
    scores = packed["rm_scores"].row_sums()
    rewards = packed["token_level_rewards"].row_sums() if "token_level_rewards" in packed else scores
    is_aborted = responses == 0
    finished = responses[~is_aborted]
    metrics = {
        **_statistics("critic/score", scores[~is_aborted]),
        **_statistics("critic/rewards", rewards[~is_aborted]),
        **_statistics("critic/advantages", *_valid(packed["advantages"], packed["response_mask"])),
        **_statistics("critic/returns", *_valid(packed["returns"], packed["response_mask"])),
        **_statistics("response_length", responses),
        "response_length/clip_ratio": _share_of(longest_response, responses),
        **_statistics("response_length_non_aborted", finished),
        "response_length_non_aborted/clip_ratio": _share_of(longest_response, finished),
        "response/aborted_ratio": float(is_aborted.float().mean()),
        **_statistics("prompt_length", prompts),
        "prompt_length/clip_ratio": _share_of(longest_prompt, prompts),
    }
    if use_critic:
        metrics |= _critic_metrics(packed)
    num_turns = columns["num_turns"]
    turns = num_turns if isinstance(num_turns, Tensor) else torch.tensor(num_turns)
    return metrics | _statistics("num_turns", turns.double()) | _statistics("training/num_turns", turns.double())


def staleness_metrics(tags: Sequence[Mapping[str, Any]], *, step: int) -> dict[str, float]:
    """Compute verl's metrics of the versions of the weights that samples were generated with.

    Args:
        tags: The tags of the samples, without those that fill up a batch.
        step: The training step. Its weights have the version `step - 1`.

    Returns:
        The metrics by verl's names.
    """
    oldest = torch.tensor([tag["min_global_steps"] for tag in tags]).double()
    newest = torch.tensor([tag["max_global_steps"] for tag in tags]).double()
    return {
        **_statistics("training/off_policy/trajectory_spans", newest - oldest + 1),
        **_statistics("training/off_policy/trajectory_staleness", step - 1 - newest),
        **_statistics("training/off_policy/trajectory_staleness_worst", step - 1 - oldest),
    }


def _critic_metrics(packed: Mapping[str, PackedColumn]) -> dict[str, float]:
    [values], [returns] = (_dense_valid(packed[name], packed["response_mask"]) for name in ("values", "returns"))
    if not len(values):
        return {**_statistics("critic/values", values), "critic/vf_explained_var": math.nan}
    explained = 1.0 - torch.var(returns - values) / (torch.var(returns) + 1e-5)
    return {**_statistics("critic/values", values), "critic/vf_explained_var": float(explained)}


def _valid(column: PackedColumn, mask: PackedColumn) -> tuple[Tensor] | tuple[Tensor, Tensor]:
    """Return the values of the tokens that count, or one value per row and the number of tokens that have it."""
    if column.form == "constant" and _is_all_ones(mask):
        has_tokens = column.lengths > 0
        return column.values[has_tokens], column.lengths[has_tokens]
    return _dense_valid(column, mask)


def _dense_valid(column: PackedColumn, mask: PackedColumn) -> tuple[Tensor]:
    return (column.dense() if _is_all_ones(mask) else column.dense()[mask.dense().bool()],)


def _is_all_ones(mask: PackedColumn) -> bool:
    return mask.form == "constant" and bool((mask.values == 1).all())


def _statistics(name: str, values: Tensor, counts: Tensor | None = None) -> dict[str, float]:
    """Return the mean, the maximum and the minimum; NaN if there are no values."""
    if not len(values):
        return dict.fromkeys((f"{name}/mean", f"{name}/max", f"{name}/min"), math.nan)
    mean = values.mean() if counts is None else (values.double() * counts).sum() / counts.sum()
    return {f"{name}/mean": float(mean), f"{name}/max": float(values.max()), f"{name}/min": float(values.min())}


def _share_of(length: int, lengths: Tensor) -> float:
    return float((lengths == length).float().mean()) if len(lengths) else math.nan
