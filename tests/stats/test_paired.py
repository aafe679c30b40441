import random

import pytest

from rgtrain.stats import adjusted_p_values, bootstrap_interval, mean, sign_test


@pytest.mark.parametrize(("num_problems", "repeats"), [(20, 1), (50, 1), (100, 3)])
def test_bootstrap_intervals_cover_the_truth_about_95_times_in_100(num_problems, repeats):
    chance = random.Random(0)
    num_covered = 0
    for seed in range(1000):
        differences = []
        for _ in range(num_problems):
            before = chance.random()
            after = before + 0.3 * (1 - before)  # 0.15 more on average
            right = [(chance.random() < after) - (chance.random() < before) for _ in range(repeats)]
            differences.append(sum(right) / repeats)
        low, high = bootstrap_interval(differences, num_resamples=1000, seed=seed)
        num_covered += low <= 0.15 <= high
    assert 930 <= num_covered <= 970


def test_equal_differences_have_no_bootstrap_interval():
    assert bootstrap_interval([0, 0, 0]) is None
    assert bootstrap_interval([1]) is None


def test_the_bootstrap_is_reproducible():
    assert bootstrap_interval([1, 0, 0, -1, 1]) == bootstrap_interval([1, 0, 0, -1, 1])


@pytest.mark.parametrize(("won", "lost", "p"), [(0, 0, 1), (1, 0, 1), (5, 0, 1 / 16), (8, 2, 112 / 1024), (3, 3, 1)])
def test_the_sign_test_agrees_with_a_calculation_by_hand(won, lost, p):
    assert sign_test(won, lost) == sign_test(lost, won) == pytest.approx(p)


def test_the_sign_test_has_at_most_5_percent_false_positives():
    chance = random.Random(0)
    wins = [sum(chance.random() < 0.5 for _ in range(40)) for _ in range(2000)]
    assert mean(sign_test(won, 40 - won) < 0.05 for won in wins) <= 0.05


def test_holms_p_values_agree_with_a_calculation_by_hand():
    assert adjusted_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted_p_values([0.9, 0.8]) == [1, 1]
    assert adjusted_p_values([]) == []
