"""Groups stay whole across ranks, with balanced work and few micro-batches."""

import math
import random
from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from rgtrain.training.update.micro_batches import PackedGroup, packed
from rgtrain.training.update.rank_balance import RankBalance, SampleLengths, WorkModel

# A model of the shape of Qwen2.5-1.5B.
WORK = WorkModel.of_decoder(num_layers=28, layer_params=46_797_824, query_width=1536, hidden=1536, vocab=151_936)
PROMPT, GROUP, MAX_TOKENS = 272, 8, 8960


def samples(groups: list[list[int]], *, prompt: int = PROMPT) -> SampleLengths:
    """Return samples by the lengths of the completions of each group."""
    names = tuple(f"{number:06}" for number, group in enumerate(groups) for _ in group)
    responses = tuple(length for group in groups for length in group)
    return SampleLengths(names, (prompt,) * len(names), responses)


def equal(num_groups: int, response: int = 1024) -> SampleLengths:
    return samples([[response] * GROUP] * num_groups)


def with_tail(num_groups: int, *, mean: float = 1024, percentile_99: float = 4096) -> SampleLengths:
    """Return samples whose completions have log-normal lengths with this mean and 99th percentile."""
    generator = random.Random(0)
    z = 2.326
    sigma = z - math.sqrt(z**2 - 2 * math.log(percentile_99 / mean))
    mu = math.log(mean) - sigma**2 / 2
    return samples([[int(generator.lognormvariate(mu, sigma)) + 1 for _ in range(GROUP)] for _ in range(num_groups)])


def fragments(lengths: SampleLengths, members: list[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i in members:
        found.setdefault(lengths.groups[i], []).append(i)
    return found


def work_of(lengths: SampleLengths, members: list[int], work: WorkModel = WORK) -> float:
    return sum(
        work.prompt(lengths.prompts[group[0]])
        + sum(work.response(lengths.prompts[i], lengths.responses[i]) for i in group)
        for group in fragments(lengths, members).values()
    )


def num_micro_batches(lengths: SampleLengths, parts: list[list[int]]) -> int:
    """Return the largest number of micro-batches of a rank."""

    def packed_groups(members: list[int]) -> list[PackedGroup]:
        groups = fragments(lengths, members).values()
        return [PackedGroup(PROMPT, [lengths.responses[i] for i in group], group) for group in groups]

    return max(len(packed(packed_groups(members), MAX_TOKENS)) for members in parts)


def of_verl(lengths: SampleLengths, num_ranks: int) -> list[list[int]]:
    totals = [prompt + response for prompt, response in zip(lengths.prompts, lengths.responses, strict=True)]
    return get_seqlen_balanced_partitions(calculate_workload(torch.tensor(totals)), num_ranks, equal_size=True)


def costs(lengths: SampleLengths, parts: list[list[int]]) -> tuple[int, int]:
    """Return the micro-batches of the rank with the most, and the thousands of tokens of the rank with the most."""
    tokens = [sum(lengths.responses[i] for i in part) + PROMPT * len(fragments(lengths, part)) for part in parts]
    return num_micro_batches(lengths, parts), round(max(tokens) / 1000)


# docs/training.md has this table.
@pytest.mark.parametrize(
    ("lengths", "num_ranks", "ours", "verls"),
    [
        pytest.param(equal(64), 2, (32, 271), (32, 280), id="64 groups on 2 ranks"),
        pytest.param(equal(64), 4, (16, 135), (19, 148), id="64 groups on 4 ranks"),
        pytest.param(equal(64), 8, (8, 68), (11, 83), id="64 groups on 8 ranks"),
        pytest.param(equal(512), 8, (64, 542), (86, 664), id="512 groups on 8 ranks"),
        pytest.param(with_tail(64), 2, (32, 273), (33, 280), id="64 groups with a tail on 2 ranks"),
        pytest.param(with_tail(64), 4, (17, 137), (17, 148), id="64 groups with a tail on 4 ranks"),
        pytest.param(with_tail(64), 8, (8, 69), (9, 78), id="64 groups with a tail on 8 ranks"),
        pytest.param(with_tail(512), 8, (66, 550), (70, 621), id="512 groups with a tail on 8 ranks"),
    ],
)
def test_whole_groups_cost_less_than_the_division_of_verl(lengths, num_ranks, ours, verls):
    parts = RankBalance(num_ranks, MAX_TOKENS, WORK).divide(lengths, range(len(lengths)))
    assert (costs(lengths, parts), costs(lengths, of_verl(lengths, num_ranks))) == (ours, verls)


def test_without_whole_groups_ranks_compute_more_tokens():
    # The partition of verl computes these prompts in parts of 4 to 8 ranks.
    lengths = equal(32, response=30)
    ours = RankBalance(8, MAX_TOKENS, WORK).divide(lengths, range(len(lengths)))
    assert sum(len(fragments(lengths, part)) for part in ours) == 32
    assert sum(len(fragments(lengths, part)) for part in of_verl(lengths, 8)) > 4 * 32


BATCHES = st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=6), min_size=1, max_size=14)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.integers(1, 5), st.integers(0, 600), st.booleans())
def test_every_sample_is_on_one_rank(groups, num_ranks, prompt, shares_prompts):
    lengths = samples(groups, prompt=prompt + 1)
    balance = RankBalance(num_ranks, MAX_TOKENS, WORK, shares_prompts=shares_prompts)
    parts = balance.divide(lengths, range(len(lengths)))
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)
    assert sum(not part for part in parts) == max(0, num_ranks - len(lengths))


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.integers(1, 5))
def test_the_busiest_rank_has_at_most_four_thirds_of_the_least_possible_work(groups, num_ranks):
    lengths = samples(groups)
    parts = RankBalance(num_ranks, None, WORK).divide(lengths, range(len(lengths)))
    whole = sorted(work_of(lengths, group) for group in fragments(lengths, list(range(len(lengths)))).values())
    # The bound of assigning the largest group first (Graham 1969). Of num_ranks + 1 groups, two are on the same rank.
    least = max(whole[-1], sum(whole) / num_ranks, sum(whole[-num_ranks - 1 :][:2]) if len(whole) > num_ranks else 0)
    assert max(work_of(lengths, part) for part in parts) <= (4 / 3 - 1 / (3 * num_ranks)) * least * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=40, max_size=60), st.integers(1, 3))
def test_groups_that_are_small_against_the_share_of_a_rank_stay_whole(response_lengths, num_ranks):
    lengths = samples([[length, length] for length in response_lengths])
    parts = RankBalance(num_ranks, MAX_TOKENS, WORK).divide(lengths, range(len(lengths)))
    assert sum(len(fragments(lengths, part)) for part in parts) == len(response_lengths)


@pytest.mark.parametrize(("num_groups", "num_ranks", "most_parts"), [(64, 8, 1), (66, 4, 1), (9, 8, 8), (3, 8, 4)])
def test_few_groups_are_divided_into_few_parts(num_groups, num_ranks, most_parts):
    lengths = equal(num_groups)
    parts = RankBalance(num_ranks, MAX_TOKENS, WORK).divide(lengths, range(len(lengths)))
    num_parts = Counter(group for part in parts for group in fragments(lengths, part))
    assert max(num_parts.values()) <= most_parts
    work = [work_of(lengths, part) for part in parts]
    assert max(work) <= 1.1 * sum(work) / num_ranks


def test_ranks_have_different_numbers_of_samples_if_lengths_differ():
    lengths = samples([[100] * 4] * 6 + [[600] * 4], prompt=1)
    parts = RankBalance(2, MAX_TOKENS, WORK).divide(lengths, range(len(lengths)))
    assert sorted(map(len, parts)) == [4, 24]


def test_attention_counts_more_in_long_groups():
    quadratic = WorkModel(token=1.0, pair=1.0)
    # Equal numbers of tokens: one completion of 900, or nine of 100.
    lengths = samples([[900]] + [[100]] * 9, prompt=1)
    parts = RankBalance(2, None, quadratic).divide(lengths, range(len(lengths)))
    assert sorted(map(len, parts)) == [1, 9]
    lengths = samples([[900]] + [[100]] * 18, prompt=1)
    assert sorted(map(len, RankBalance(2, None, quadratic).divide(lengths, range(len(lengths))))) == [1, 18]


def shares_of(lengths, num_ranks, **settings):
    return RankBalance(num_ranks, MAX_TOKENS, WORK).update_shares(lengths, **settings)


def members(shares, number: int) -> list[int]:
    """Return the samples of a mini-batch on all ranks."""
    return sorted(
        share.samples[row]
        for share in shares
        for row in share.mini_batches[number].rows
        if share.mini_batches[number].counts
    )


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_mini_batches_are_the_same_for_every_number_of_ranks(shuffle_seed):
    lengths = with_tail(12)
    settings = {"mini_batch_size": 4 * GROUP, "epochs": 2, "shuffle_seed": shuffle_seed}
    one, three = shares_of(lengths, 1, **settings), shares_of(lengths, 3, **settings)
    assert [len(share.mini_batches) for share in three] == [6, 6, 6]
    found = [members(three, number) for number in range(6)]
    assert found == [members(one, number) for number in range(6)]
    assert sorted(chain(*found[:3])) == sorted(chain(*found[3:])) == list(range(96))
    assert (found[:3] == found[3:]) == (shuffle_seed is None)
    for number, samples_of_all in enumerate(found):
        assert all(share.mini_batches[number].num_samples == len(samples_of_all) for share in three)
        assert len({lengths.groups[i] for i in samples_of_all}) == 4


def test_a_rank_sends_a_sample_once_for_all_epochs():
    for share in shares_of(with_tail(8), 2, mini_batch_size=32, epochs=3, shuffle_seed=1):
        assert len(share.samples) == len(set(share.samples))


def test_a_rank_without_samples_computes_one_that_does_not_count():
    lengths = samples([[5, 3, 9]])
    shares = shares_of(lengths, 4, mini_batch_size=3)
    assert [share.mini_batches[0].counts for share in shares].count(False) == 1
    assert all(share.mini_batches[0].rows for share in shares)
    assert members(shares, 0) == [0, 1, 2]
    assert all(share.samples for share in RankBalance(4, MAX_TOKENS, WORK).shares(lengths))


def test_a_last_mini_batch_can_be_smaller():
    shares = shares_of(equal(5), 2, mini_batch_size=2 * GROUP)
    assert [mini_batch.num_samples for mini_batch in shares[0].mini_batches] == [16, 16, 8]
