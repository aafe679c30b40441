import random

import pytest

from rgtrain.stats import clustered_standard_error, effective_size, mean, share_interval, t_quantile


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (10, 2.228), (30, 2.042), (100, 1.984)])
def test_the_t_quantile_agrees_with_published_tables(degrees, quantile):
    assert t_quantile(0.975, degrees=degrees) == pytest.approx(quantile, rel=1 / 300)


def test_the_share_interval_agrees_with_a_calculation_by_hand():
    # Wilson's interval for 8 of 10 is (8 + z^2 / 2) / (10 + z^2) +- z sqrt(1.6 + z^2 / 4) / (10 + z^2) with z = 1.96.
    assert share_interval(0.8, num_independent=10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_the_effective_size_counts_equal_answers_to_a_problem_once():
    error = clustered_standard_error([0, 0, 1, 1] * 25, clusters=[i // 2 for i in range(100)])
    assert effective_size(0.5, error, num_clusters=50) == pytest.approx(49)
    assert effective_size(1.0, 0.0, num_clusters=50) == 50


@pytest.mark.parametrize(("num_problems", "share"), [(100, 0.5), (100, 0.95), (200, 0.9), (30, 0.3)])
def test_share_intervals_cover_the_truth_about_95_times_in_100(num_problems, share):
    chance = random.Random(1)
    num_covered = 0
    for _ in range(2000):
        low, high = share_interval(
            mean(chance.random() < share for _ in range(num_problems)), num_independent=num_problems
        )
        num_covered += low <= share <= high
    assert 1860 <= num_covered <= 1940


def test_share_intervals_of_repeated_answers_cover_the_truth_about_95_times_in_100():
    chance = random.Random(0)
    num_covered = 0
    for _ in range(1000):
        difficulties = [chance.random() for _ in range(60)]
        values = [float(chance.random() < p) for p in difficulties for _ in range(3)]
        error = clustered_standard_error(values, clusters=[problem for problem in range(60) for _ in range(3)])
        size = effective_size(mean(values), error, num_clusters=60)
        low, high = share_interval(mean(values), num_independent=size)
        num_covered += low <= 0.5 <= high
    assert 930 <= num_covered <= 970
