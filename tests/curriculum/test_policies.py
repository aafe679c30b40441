"""Policies change levels by training answers only, and continue from a saved state without a difference."""

import json
import math
import random

import pytest

from rgtrain.curriculum.policies import Bandit, Frontier, Threshold, Uniform
from rgtrain.errors import ConfigError

POLICIES = [
    lambda: Threshold(num_levels=5, window=8),
    lambda: Frontier(num_levels=5),
    lambda: Bandit(num_levels=5),
    lambda: Uniform(num_levels=5),
]


def step(policy, *groups):
    """Let the policy observe a step of groups, each a level and its successes, and return the level after it."""
    for level, successes in groups:
        policy.observe(level, successes)
    policy.end_step()
    return policy.level


def test_threshold_raises_after_a_full_window_and_clears_it():
    policy = Threshold(num_levels=3, window=4, raise_above=0.7, lower_below=0.1)
    assert step(policy, (0, [1, 1, 1])) == 0
    assert step(policy, (0, [1])) == 1
    assert step(policy, (1, [1, 1, 1])) == 1


def test_threshold_lowers_below_its_lower_threshold_and_stays_between_both():
    policy = Threshold(num_levels=3, window=4, raise_above=0.7, lower_below=0.3)
    assert step(policy, (0, [1] * 4)) == 1
    assert step(policy, (1, [1, 0, 1, 0])) == 1
    assert step(policy, (1, [0, 0, 0, 0])) == 0


def test_threshold_changes_by_at_most_one_level_a_step_and_judges_its_last_answers():
    assert step(Threshold(num_levels=5, window=8), *[(0, [1] * 8)] * 32) == 1
    assert step(Threshold(num_levels=5, window=8), *[(0, [1] * 8)] * 31, (0, [0] * 8)) == 0


@pytest.mark.parametrize("scores", [[0.0] * 40, [0.5] * 40])
def test_threshold_never_raises_on_low_scores(scores):
    assert step(Threshold(num_levels=3, window=20), (0, scores)) == 0


def test_threshold_stays_on_the_ladder_and_clears_its_window_there():
    policy = Threshold(num_levels=2, window=2, lower_below=0.6)
    assert step(policy, (0, [0, 0])) == 0
    assert step(policy, (0, [1, 1])) == 1
    assert step(policy, (1, [1, 1])) == 1
    assert step(policy, (1, [0])) == 1
    assert step(policy, (1, [0])) == 0


def test_threshold_windows_include_all_groups_of_a_level():
    policy = Threshold(num_levels=2, window=8, raise_above=0.7)
    assert step(policy, (0, [1] * 4)) == 0
    assert step(policy, (0, [0] * 4)) == 0


def test_threshold_ignores_answers_drawn_before_its_last_change():
    policy = Threshold(num_levels=3, window=2)
    assert step(policy, (0, [1, 1])) == 1
    assert step(policy, (0, [0, 0])) == 1


def test_frontier_opens_one_level_after_the_other_as_they_are_learned():
    policy = Frontier(num_levels=3)
    policy.observe(0, [0] * 8)
    assert policy.num_open == 1
    for _ in range(20):
        policy.observe(0, [1] * 8)
    assert policy.num_open == 2
    for _ in range(20):
        policy.observe(1, [1] * 8)
    policy.observe(2, [1] * 8)
    assert policy.num_open == 3


def test_frontier_prefers_a_success_rate_of_one_half_and_replays_other_levels():
    policy = Frontier(num_levels=3, replay=0.2)
    for level, share in enumerate((1.0, 0.5, 0.0)):
        policy.num_open = 3
        for _ in range(30):
            policy.observe(level, [share] * 8)
    rng = random.Random(0)
    draws = [policy.draw(rng) for _ in range(2000)]
    shares = [draws.count(level) / len(draws) for level in range(3)]
    assert shares[1] > 0.8
    # A fifth of the draws is replay, uniform over three levels.
    assert 0.04 < shares[0] < 0.1


def test_frontier_forgets_failures_of_an_earlier_model():
    policy = Frontier(num_levels=2, memory=32)
    for _ in range(50):
        policy.observe(0, [0] * 8)
    for _ in range(12):
        policy.observe(0, [1] * 8)
    assert policy.expected(0) > 0.9


@pytest.mark.parametrize(
    ("successes", "pay_off"),
    [
        ([1, 0, 1, 0], 1.0),
        # A share p of right answers pays 2 sqrt(p (1 - p)).
        ([1, 0, 0, 0], 2 * math.sqrt(3 / 16)),
        # Partial credit counts relative to its deviation.
        ([0.2, 0.1, 0.2, 0.1], 1.0),
        ([0.1] * 3, 0.0),
        ([1.0] * 8, 0.0),
        ([1.0], 0.0),
    ],
)
def test_the_pay_off_of_a_group_is_its_mean_absolute_advantage(successes, pay_off):
    policy = Bandit(num_levels=2, alpha=1)
    policy.observe(1, successes)
    policy.end_step()
    assert policy.values == pytest.approx([0, pay_off])


def test_a_bandits_value_moves_to_the_mean_pay_off_of_a_step():
    policy = Bandit(num_levels=3, alpha=0.5)
    for expected in (0.25, 0.375):
        policy.observe(1, [1, 0] * 4)
        policy.observe(1, [1] * 8)
        policy.end_step()
        assert policy.values == pytest.approx([0, expected, 0])
        assert policy.metrics() == pytest.approx(
            {"level": 1, "value_of_level_0": 0, "value_of_level_1": expected, "value_of_level_2": 0}
        )


def test_bandit_draws_levels_by_the_softmax_of_their_values():
    policy, rng = Bandit(num_levels=3, alpha=1, temperature=0.5), random.Random(0)
    policy.observe(1, [1, 0] * 4)
    policy.end_step()
    draws = [policy.draw(rng) for _ in range(4000)]
    assert draws.count(1) / len(draws) == pytest.approx(math.exp(2) / (math.exp(2) + 2), abs=0.03)
    assert draws.count(0) / len(draws) == pytest.approx(1 / (math.exp(2) + 2), abs=0.03)


def test_bandit_follows_a_learner_up_the_levels():
    """The share of right answers is near 1/2 at one level only, and this level rises."""
    policy, rng = Bandit(num_levels=5, temperature=0.2), random.Random(0)
    favourites = []
    for frontier in range(5):
        for _ in range(40):
            for level in [policy.draw(rng) for _ in range(16)]:
                chance = 1 / (1 + math.exp(-4 * (frontier - level)))
                policy.observe(level, [float(rng.random() < chance) for _ in range(8)])
            policy.end_step()
        draws = [policy.draw(rng) for _ in range(200)]
        favourites.append(max(range(5), key=draws.count))
    assert favourites == [0, 1, 2, 3, 4]


def test_uniform_draws_all_levels_and_ignores_answers():
    policy = Uniform(num_levels=4)
    for _ in range(100):
        policy.observe(0, [1.0] * 8)
    rng = random.Random(0)
    draws = [policy.draw(rng) for _ in range(4000)]
    assert all(0.2 < draws.count(level) / len(draws) < 0.3 for level in range(4))


@pytest.mark.parametrize("make", POLICIES)
def test_a_restored_policy_continues_like_the_original(make):
    rng = random.Random(1)
    groups = [(rng.randrange(5), [float(rng.random() < 0.7) for _ in range(8)]) for _ in range(60)]
    whole, first = make(), make()
    for level, scores in groups:
        whole.observe(level, scores)
    for level, scores in groups[:30]:
        first.observe(level, scores)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for level, scores in groups[30:]:
        second.observe(level, scores)
    assert second.state_dict() == whole.state_dict()
    draws = [
        [policy.draw(rng) for _ in range(50)] for policy, rng in ((whole, random.Random(2)), (second, random.Random(2)))
    ]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("make", POLICIES)
def test_drawn_levels_exist(make):
    policy, rng = make(), random.Random(3)
    for _ in range(300):
        level = policy.draw(rng)
        assert 0 <= level < 5
        policy.observe(level, [1.0] * 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Threshold(num_levels=3, raise_above=0.2, lower_below=0.5),
            "raise_above is 0.2 and its lower_below 0.5",
        ),
        (lambda: Threshold(num_levels=3, window=0), "window is 0; give a number of at least 1"),
        (lambda: Frontier(num_levels=3, replay=2), "replay is 2; give a number from 0 to 1"),
        (lambda: Bandit(num_levels=3, alpha=0), "alpha is 0; give a number above 0 and up to 1"),
        (lambda: Bandit(num_levels=3, temperature=0), "temperature is 0; give a number of at least 0.01"),
        (lambda: Frontier(num_levels=3, memory=0.5), "memory is 0.5; give a number of at least 1"),
    ],
)
def test_unusable_options_are_reported(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
