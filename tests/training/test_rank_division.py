"""Each call of the workers divides a batch by its own budget, mini-batches and layout."""

from types import SimpleNamespace

import pytest
from transfer_queue import KVBatchMeta

from rgtrain.models.model_shapes import SHAPES
from rgtrain.training.rank_division import RankDivision, lengths_of, work_of
from rgtrain.training.update.layouts import ONE_ROW, PADDED_ROWS, SHARED_PROMPTS
from rgtrain.training.update.rank_balance import WorkModel

SHAPE = SHAPES["qwen2.5-1.5b"] if "qwen2.5-1.5b" in SHAPES else next(iter(SHAPES.values()))


def batch(num_groups: int, *responses: int, **settings) -> KVBatchMeta:
    keys = [f"{group:06}-000000_{number}_0" for group in range(num_groups) for number in range(len(responses))]
    tags = [{"prompt_len": 20, "response_len": length} for _ in range(num_groups) for length in responses]
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train", extra_info=settings)


def division(*, num_ranks: int = 2, layout: str = SHARED_PROMPTS.name) -> RankDivision:
    config = SimpleNamespace(actor=SimpleNamespace(ppo_max_token_len_per_gpu=1000))
    budgets = {"compute_log_prob": 2000, "compute_ref_log_prob": 3000}
    return RankDivision.of_run(config, num_ranks=num_ranks, layout=layout, model=SHAPE, log_prob_tokens=budgets)


def update(**settings) -> dict:
    return {"mini_batch_size": 8, "epochs": 1, "seed": 42, "dataloader_kwargs": {"shuffle": False}, **settings}


def test_each_method_has_its_budget():
    balances = division().balances
    assert {method: balance.max_tokens for method, balance in balances.items()} == {
        "update_actor": 1000,
        "compute_log_prob": 2000,
        "compute_ref_log_prob": 3000,
        # Padding decides how the micro-batches of a critic fill.
        "infer_batch": None,
        "train_mini_batch": None,
    }


@pytest.mark.parametrize(("layout", "shares_prompts"), [(SHARED_PROMPTS, True), (ONE_ROW, False), (PADDED_ROWS, False)])
def test_groups_are_whole_if_the_layout_shares_prompts(layout, shares_prompts):
    balances = division(layout=layout.name).balances
    assert balances["update_actor"].shares_prompts == balances["compute_log_prob"].shares_prompts == shares_prompts
    assert not balances["train_mini_batch"].shares_prompts


def test_a_forward_pass_has_no_mini_batches():
    shares = division().shares("compute_log_prob", batch(4, 5, 6))
    assert [share.mini_batches for share in shares] == [[], []]
    assert sorted(i for share in shares for i in share.samples) == list(range(8))


@pytest.mark.parametrize("method", ["update_actor", "train_mini_batch"])
def test_an_update_has_the_mini_batches_of_its_settings(method):
    shares = division().shares(method, batch(8, 5, 6, 7, 8, **update(epochs=3)))
    assert [len(share.mini_batches) for share in shares] == [12, 12]
    shuffled = update(epochs=3, dataloader_kwargs={"shuffle": True})
    one, other = (division().shares(method, batch(8, 5, 6, 7, 8, **shuffled)) for _ in range(2))
    assert one == other != shares


def test_metrics_compare_the_tokens_of_ranks_before_and_after_balancing():
    lengths = batch(2, 100, 100)
    lengths.tags[2:] = [{"prompt_len": 20, "response_len": 20}] * 2
    metrics = division().metrics(lengths, prefix="global_seqlen")
    assert (metrics["global_seqlen/min"], metrics["global_seqlen/max"]) == (80, 240)
    assert metrics["global_seqlen/mean"] == 160
    assert metrics["global_seqlen/balanced_max"] < 240


def test_groups_are_known_by_the_keys_of_their_samples():
    lengths = lengths_of(batch(2, 3, 4))
    assert lengths.groups == ("000000-000000",) * 2 + ("000001-000000",) * 2
    assert lengths.responses == (3, 4, 3, 4)


def test_the_work_follows_the_shape_of_the_model():
    work = work_of(SHAPE)
    assert work.pair == 4 * SHAPE["num_hidden_layers"] * SHAPE["hidden_size"]
    assert work.response_token == 2 * SHAPE["vocab_size"] * SHAPE["hidden_size"]
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": SHAPE["intermediate_size"]}
    assert work_of({**SHAPE, **experts}).token < 3 * work.token
    assert work_of({"model_type": "unknown"}) == WorkModel()
