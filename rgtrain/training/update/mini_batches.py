"""Train on the mini-batches of a rank, which can differ in size from those of other ranks.

verl gives each rank equal numbers of samples, and cuts them into mini-batches on the rank. Here, the trainer plans the
mini-batches of all ranks together, and sends each rank its part of each.
"""

from collections.abc import Mapping, Sequence
from functools import wraps
from itertools import chain
from typing import Any, cast

import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.utils.py_functional import append_to_dict

from rgtrain.training.update.rank_balance import MiniBatch
from rgtrain.upstream.rank_parts import MINI_BATCHES

_MASKS = ("loss_mask", "response_mask")
# verl's settings of mini-batches, which the plan replaces.
_REPLACED = ("mini_batch_size", "num_mini_batch", "epochs", "seed", "dataloader_kwargs")


def training_on_shares(original: Any) -> Any:
    """Wrap `train_mini_batch` of verl's training worker so that it takes the trainer's mini-batches.

    Args:
        original: verl's method.

    Returns:
        The method to use.
    """

    # verl's method has attributes from which its worker group builds the call.
    @wraps(original)
    def train_mini_batch(self: Any, data: TensorDict) -> TensorDict:
        planned: list[MiniBatch] = tu.pop(data, key=MINI_BATCHES)
        for name in _REPLACED:
            tu.pop(data, key=name, default=None)
        offloads_later = not tu.pop(data, key="disable_auto_offload", default=False)
        metrics: dict[str, Any] = {}
        with self.engine.train_mode(disable_auto_offload=not offloads_later):
            for number, mini_batch in enumerate(planned, start=1):
                samples = _samples_of(data, mini_batch)
                tu.assign_non_tensor(
                    samples,
                    # The sum of a mini-batch's losses is divided by its own number of samples.
                    global_batch_size=mini_batch.num_samples,
                    global_token_num=NonTensorData(mini_batch.num_tokens),
                    update_lr_scheduler=number == len(planned),
                    disable_auto_offload=True,
                )
                with torch.profiler.record_function(f"mini_batch{number - 1}"):
                    output = self.train_batch(samples)
                self.profiler.step()
                append_to_dict(metrics, {name: _joined(value) for name, value in tu.get(output, "metrics").items()})
        return cast(TensorDict, tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics}).cpu())

    return train_mini_batch


def _samples_of(data: TensorDict, mini_batch: MiniBatch) -> TensorDict:
    """Return the samples of a mini-batch, with masks of zeros if they don't count."""
    # Also for all rows: nested tensors that were sent have lost their longest length, and would be padded to the total.
    samples = tu.index_select_tensor_dict(data, mini_batch.rows)
    return cast(TensorDict, samples if mini_batch.counts else without_loss(samples))


def without_loss(samples: TensorDict) -> TensorDict:
    """Return samples with masks of zeros, so that they add nothing to sums of losses and of tokens."""
    masks = {name: torch.zeros_like(samples[name]) for name in _MASKS if name in samples}
    return cast(TensorDict, samples.copy().update(masks))


def select_micro_batches(data: TensorDict, parts: Sequence[list[int]]) -> tuple[list[TensorDict], list[list[int]]]:
    """Return the micro-batches of a rank, as verl's `prepare_micro_batches` does.

    Args:
        data: The rank's samples.
        parts: The positions of the samples of each micro-batch. An empty one, with which a rank runs as many
            micro-batches as the others, computes the shortest sample without its loss.

    Returns:
        The micro-batches, and the rows of their outputs. Rows of empty parts follow all others; `without_spare_rows`
        removes them.
    """
    if len(parts) == 1:
        return [data], [list(range(len(data)))]
    shortest = int(data["input_ids"].offsets().diff().argmin())
    micro_batches, rows, num_spare = [], [], 0
    for part in parts:
        if part:
            micro_batches.append(tu.index_select_tensor_dict(data, part))
            rows.append(part)
        else:
            micro_batches.append(without_loss(tu.index_select_tensor_dict(data, [shortest])))
            rows.append([len(data) + num_spare])
            num_spare += 1
    return micro_batches, rows


def without_spare_rows(output: Any, *, num_samples: int) -> Any:
    """Return the output of verl's `forward_backward_batch` without the rows of empty micro-batches."""
    for name, values in output["model_output"].items():
        if len(values) > num_samples:
            rows = values.unbind()[:num_samples]
            output["model_output"][name] = torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
    return output


def _joined(value: Any) -> Any:
    """Return the values of all ranks and micro-batches of a metric as one number or as one list."""
    if not isinstance(value, list):
        return value
    return Metric.aggregate_dp(value) if isinstance(value[0], Metric) else list(chain.from_iterable(value))


def weighted_by_tokens(metrics: Mapping[str, Any], micro_batch: TensorDict) -> dict[str, Any]:
    """Return metrics of a micro-batch such that verl's reduction over micro-batches and ranks is the mean over tokens.

    verl averages over micro-batches and ranks with equal weights, although they differ in their numbers of tokens.

    Args:
        metrics: The metrics that verl's loss returns. Those that verl would average have one value per micro-batch.
        micro_batch: The samples, with the number of tokens of all ranks in `batch_num_tokens` and that of ranks in
            `dp_size`.

    Returns:
        The metrics, with each mean replaced by its share of the mean over all tokens.
    """
    total = micro_batch["batch_num_tokens"]
    # verl adds up micro-batches, and then averages over ranks.
    share = float(micro_batch["loss_mask"].values().sum()) * micro_batch["dp_size"] / total if total else 0.0

    def weighted(value: Any) -> Any:
        if isinstance(value, Metric):
            if value.aggregation is not AggregationType.MEAN:
                return value
            value = sum(value.values) / len(value.values)
        elif isinstance(value, torch.Tensor):
            value = value.detach()
        # A tensor may be on the GPU, and reading it here would wait for it.
        return Metric(value=value * share, aggregation=AggregationType.SUM)

    return {name: value if name == "kl_coef" else weighted(value) for name, value in metrics.items()}
