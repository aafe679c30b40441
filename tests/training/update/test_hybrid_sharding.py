"""Four ranks with two copies of the states, each on two ranks, train like one rank and continue on any number.

test_engine.py has the case of one rank per copy.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import test_engine
from support.ranks import Ranks, start_worlds
from test_engine import INVARIANT_METRICS, LONG_GROUPS, MAX_TOKENS, MINI_BATCHES, run_config

from rgtrain.machine.devices import num_gpus
from rgtrain.training.update.rank_balance import RankBalance, RankShare, SampleLengths, WorkModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(num_gpus() > 0, reason="the CUDA stack is installed"),
]

# The fixtures.
model_folder, lora = test_engine.model_folder, test_engine.lora
# AdamW would normalise tiny gradients, and so turn their rounding errors into full steps.
ADAMW = (
    "actor_rollout_ref.actor.optim={optimizer: AdamW, override_optimizer_config: {eps: 0.1}, lr: 1e-2, "
    "lr_scheduler_type: cosine, total_training_steps: 10}"
)


def copies_on(num_ranks: int) -> list[str]:
    """Return the settings for copies of the states on `num_ranks` ranks each. -1 means one copy on all ranks."""
    return [f"actor_rollout_ref.{part}.fsdp_config.fsdp_size={num_ranks}" for part in ("actor", "ref")]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Iterator[dict[int, Ranks]]:
    """Yield worlds of one, two and four ranks by their size."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = test_engine.ENVIRONMENT
    with start_worlds([1, 2, 4], "support.training_ranks", folder=folder, environment=environment) as worlds:
        yield worlds


def balanced_shares(num_ranks: int) -> list[RankShare]:
    """Return the shares of the ranks in MINI_BATCHES, as the trainer divides them."""
    groups, samples = [], [sample for mini_batch in MINI_BATCHES for sample in mini_batch]
    for number, mini_batch in enumerate(MINI_BATCHES):
        groups += [f"{number} {sample.prompt}" for sample in mini_batch]
    lengths = SampleLengths(
        tuple(groups),
        tuple(len(sample.prompt) for sample in samples),
        tuple(len(sample.response) for sample in samples),
    )
    balance = RankBalance(num_ranks, MAX_TOKENS, WorkModel())
    return balance.update_shares(lengths, mini_batch_size=len(MINI_BATCHES[0]))


@pytest.mark.parametrize("trains_adapters", [False, True])
@pytest.mark.parametrize(("reduces_once", "reshards"), [(True, False), (False, True), (False, False)])
def test_two_copies_on_two_ranks_each_train_like_one_rank(
    worlds, model_folder, lora, trains_adapters, reduces_once, reshards
):
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    settings = [
        f"{fsdp}.use_no_sync_for_gradient_accumulation={reduces_once}",
        f"{fsdp}.reshard_after_forward={reshards}",
    ]
    settings += [lora] if trains_adapters else []
    one_rank, four_ranks = worlds[1], worlds[4]
    one_rank.call("build_actor", run_config(model_folder, *settings))
    four_ranks.call("build_actor", run_config(model_folder, *settings, *copies_on(2)))
    assert four_ranks.call("mesh_shape") == [(2, 2)] * 4
    one = one_rank.call("update", MINI_BATCHES)[0]
    four = four_ranks.call("update", MINI_BATCHES, shares=balanced_shares(4))[0]
    test_engine.assert_equal_gradients(one["gradients"], four["gradients"])
    for name in INVARIANT_METRICS:
        assert four["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-5, abs=1e-9), name
    [expected] = one_rank.call("weights")
    for weights in four_ranks.call("weights"):
        assert weights.keys() == expected.keys()
        for name, values in weights.items():
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)


# The number of ranks, and of those that share a copy.
@pytest.mark.parametrize(
    ("saving", "loading"),
    [((4, 2), (4, -1)), ((4, -1), (4, 2)), ((4, 2), (2, -1)), ((2, -1), (4, 2)), ((4, 1), (4, 2)), ((4, 2), (1, -1))],
)
def test_training_continues_with_another_number_of_copies(worlds, model_folder, tmp_path, saving, loading):
    before, after = worlds[saving[0]], worlds[loading[0]]
    before.call("build_actor", run_config(model_folder, ADAMW, *copies_on(saving[1])))
    before.call("update", [LONG_GROUPS])
    folder = str(tmp_path / "global_step_1" / "actor")
    before.call("save_checkpoint", folder)
    [saved, *_] = before.call("training_state")
    continued = before.call("update", [LONG_GROUPS[::-1]])[0]["gradients"]
    after.call("build_actor", run_config(model_folder, ADAMW, *copies_on(loading[1])))
    after.call("load_checkpoint", folder)
    for loaded in after.call("training_state"):
        test_engine.assert_close_states(loaded, saved, within=0)
    test_engine.assert_equal_gradients(continued, after.call("update", [LONG_GROUPS[::-1]])[0]["gradients"])
