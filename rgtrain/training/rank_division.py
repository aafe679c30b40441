"""Divide the batches of a run over its ranks, for each call of the workers."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transfer_queue import KVBatchMeta

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.sizes import ModelSize
from rgtrain.training.rollout.groups import SampleKey
from rgtrain.training.update.layouts import LAYOUTS
from rgtrain.training.update.rank_balance import RankBalance, RankShare, SampleLengths, WorkModel

_CRITIC_METHODS = ("infer_batch", "train_mini_batch")
_UPDATES = ("update_actor", "train_mini_batch")


@dataclass(frozen=True)
class RankDivision:
    """Divides batches over ranks.

    Attributes:
        balances: The balance of each method of the workers.
    """

    balances: Mapping[str, RankBalance]

    @classmethod
    def of_run(
        cls,
        config: RunConfig,
        *,
        num_ranks: int,
        layout: str,
        model: Mapping[str, Any],
        log_prob_tokens: Mapping[str, int],
    ) -> "RankDivision":
        """Return the division of a run.

        Args:
            config: The run's configuration.
            num_ranks: The number of ranks.
            layout: The name of the layout in training.
            model: The content of the model's config.json.
            log_prob_tokens: The maximum tokens of a micro-batch, for each method that computes log-probabilities.

        Returns:
            The division.
        """
        [chosen] = [one for one in LAYOUTS if one.name == layout]
        budgets = {"update_actor": config.actor.ppo_max_token_len_per_gpu, **log_prob_tokens}
        balances = {
            method: RankBalance(
                num_ranks=num_ranks,
                max_tokens=None if chosen.is_padded else max_tokens,
                work=work_of(model),
                shares_prompts=chosen.shares_prompts,
            )
            for method, max_tokens in budgets.items()
        }
        # A critic pads its sequences and does not share prompts.
        critic = replace(balances["update_actor"], max_tokens=None, shares_prompts=False)
        return cls(balances | dict.fromkeys(_CRITIC_METHODS, critic))

    def shares(self, method: str, batch: KVBatchMeta) -> list[RankShare]:
        """Return the share of each rank for a call of `method`, with mini-batches if it updates a model."""
        balance, lengths = self.balances[method], lengths_of(batch)
        if method not in _UPDATES:
            return balance.shares(lengths)
        settings = batch.extra_info
        return balance.update_shares(
            lengths,
            mini_batch_size=settings["mini_batch_size"],
            epochs=settings["epochs"],
            shuffle_seed=settings["seed"] if settings["dataloader_kwargs"]["shuffle"] else None,
        )

    def metrics(self, batch: KVBatchMeta, *, prefix: str) -> dict[str, float]:
        """Return metrics of the tokens per rank, before and after balancing, by verl's names.

        Args:
            batch: The samples.
            prefix: The part of the names before the slash.

        Returns:
            The mean, and the extremes without balancing (equal numbers of samples in order) and with it.
        """
        lengths = lengths_of(batch)
        tokens = [prompt + response for prompt, response in zip(lengths.prompts, lengths.responses, strict=True)]
        shares = self.balances["update_actor"].shares(lengths)
        num_ranks = len(shares)
        bounds = [rank * len(tokens) // num_ranks for rank in range(num_ranks + 1)]
        in_order = [sum(tokens[start:end]) for start, end in itertools.pairwise(bounds)]
        balanced = [sum(tokens[i] for i in share.samples) for share in shares]
        return {
            f"{prefix}/min": min(in_order),
            f"{prefix}/max": max(in_order),
            f"{prefix}/minmax_diff": max(in_order) - min(in_order),
            f"{prefix}/balanced_min": min(balanced),
            f"{prefix}/balanced_max": max(balanced),
            f"{prefix}/mean": sum(tokens) / num_ranks,
        }


def work_of(model: Mapping[str, Any]) -> WorkModel:
    """Return the work of a model, from the content of its config.json; the default if it is no plain decoder."""
    size = ModelSize.if_known(model)
    if size is None:
        return WorkModel()
    return WorkModel.of_decoder(
        num_layers=size.num_layers,
        # A token uses some of the experts only.
        layer_params=replace(size, stored_intermediate=None).layer,
        query_width=size.query_width,
        hidden=size.hidden,
        vocab=size.vocab,
    )


def lengths_of(batch: KVBatchMeta) -> SampleLengths:
    """Return the groups and lengths of a batch's samples, from their keys and tags."""
    tags: Sequence[Mapping[str, Any]] = batch.tags
    return SampleLengths(
        groups=tuple(SampleKey.uid_of(key) for key in batch.keys),
        prompts=tuple(tag["prompt_len"] for tag in tags),
        responses=tuple(tag["response_len"] for tag in tags),
    )
