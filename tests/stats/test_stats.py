import itertools
import math
import random
import statistics
from collections import Counter

import pytest

from rgtrain.stats import (
    adjusted_p_values,
    bootstrap_interval,
    clustered_standard_error,
    effective_size,
    majority_at_k,
    mean,
    pass_at_k,
    share_interval,
    sign_test,
    t_quantile,
)


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean([])


def test_the_error_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        clustered_standard_error([], clusters=[])


def test_labels_that_do_not_match_the_values_are_refused():
    with pytest.raises(ValueError, match="2 values but 1 cluster"):
        clustered_standard_error([0, 1], clusters=["a"])


def test_one_value_a_cluster_gives_the_textbook_error():
    values = [0.0, 0.25, 1.0, 1.0, 0.5]
    assert clustered_standard_error(values, clusters=range(5)) == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_clusters_of_unequal_size_worked_by_hand():
    # Mean 0.5; cluster sums of deviations 0.5, -1 and 0.5; sqrt(3 / 2 * (0.25 + 1 + 0.25)) / 4.
    error = clustered_standard_error([1, 0, 0, 1], clusters=["a", "b", "b", "c"])
    assert error == pytest.approx(math.sqrt(1.5 * 1.5) / 4)


def test_repeating_every_answer_adds_no_certainty():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    once = clustered_standard_error(values, clusters=range(5))
    assert clustered_standard_error(values * 4, clusters=list(range(5)) * 4) == pytest.approx(once)


def test_a_single_cluster_has_no_error():
    assert clustered_standard_error([0, 1, 1], clusters="aaa") is None


def test_equal_values_have_error_zero():
    assert clustered_standard_error([1, 1, 1], clusters="abc") == 0


def test_intervals_of_two_errors_cover_the_truth_about_95_times_in_100():
    chance = random.Random(0)
    num_covered = 0
    for _ in range(1000):
        # 100 problems of difficulty p, uniform, 3 answers to each: the true accuracy is one half.
        difficulties = [chance.random() for _ in range(100)]
        values = [float(chance.random() < p) for p in difficulties for _ in range(3)]
        error = clustered_standard_error(values, clusters=[problem for problem in range(100) for _ in range(3)])
        num_covered += abs(mean(values) - 0.5) < 1.96 * error
    assert 930 <= num_covered <= 970


@pytest.mark.parametrize(("num_right", "k", "chance"), [(0, 2, 0), (1, 1, 0.25), (1, 2, 0.5), (2, 2, 5 / 6), (3, 2, 1)])
def test_pass_at_k_worked_by_hand_for_four_answers(num_right, k, chance):
    assert pass_at_k(num_right, num_samples=4, k=k) == pytest.approx(chance)


def test_pass_at_k_is_the_mean_over_all_choices_of_k_answers():
    right = [True, False, False, True, False, False]
    chosen = [any(subset) for subset in itertools.combinations(right, 3)]
    assert pass_at_k(2, num_samples=6, k=3) == pytest.approx(mean(chosen))


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_beyond_the_answers_is_refused(k):
    with pytest.raises(ValueError, match="with 3 answers give 1 to 3"):
        pass_at_k(1, num_samples=3, k=k)
    with pytest.raises(ValueError, match="with 3 answers give 1 to 3"):
        majority_at_k(["1", "1", "2"], right=[True, True, False], k=k)


def majority_by_counting(answers, right, k):
    """The definition of majority@k: every choice of k answers votes."""
    verdicts = dict(zip(answers, right, strict=True))
    won = []
    for votes in itertools.combinations(answers, k):
        counts = Counter(vote for vote in votes if vote is not None)
        best = [vote for vote, count in counts.items() if count == max(counts.values())]
        won.append(sum(verdicts[vote] for vote in best) / len(best) if best else 0)
    return mean(won)


@pytest.mark.parametrize("seed", range(30))
def test_majority_at_k_is_the_mean_over_all_choices_of_k_votes(seed):
    chance = random.Random(seed)
    answers = [chance.choice(["7", "8", "9", None]) for _ in range(7)]
    right = [answer == "7" for answer in answers]
    for k in range(1, 8):
        assert majority_at_k(answers, right=right, k=k) == pytest.approx(majority_by_counting(answers, right, k))


def test_majority_at_1_is_the_accuracy_and_silence_solves_nothing():
    assert majority_at_k(["7", "8", None, None], right=[True, False, False, False], k=1) == 0.25
    assert majority_at_k([None, None], right=[False, False], k=2) == 0


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (10, 2.228), (30, 2.042), (100, 1.984)])
def test_the_t_quantile_is_that_of_the_tables(degrees, quantile):
    assert t_quantile(0.975, degrees=degrees) == pytest.approx(quantile, rel=1 / 300)


def test_the_share_interval_worked_by_hand():
    # Wilson for 8 of 10: (8 + z^2 / 2) / (10 + z^2), plus and minus z sqrt(1.6 + z^2 / 4) / (10 + z^2), z = 1.96.
    assert share_interval(0.8, num_independent=10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_an_effective_size_counts_equal_answers_to_a_problem_once():
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


@pytest.mark.parametrize(("num_problems", "repeats"), [(20, 1), (50, 1), (100, 3)])
def test_bootstrap_intervals_cover_the_truth_about_95_times_in_100(num_problems, repeats):
    chance = random.Random(0)
    num_covered = 0
    for seed in range(1000):
        differences = []
        for _ in range(num_problems):
            before = chance.random()
            after = before + 0.3 * (1 - before)  # on average 0.15 above
            right = [(chance.random() < after) - (chance.random() < before) for _ in range(repeats)]
            differences.append(sum(right) / repeats)
        low, high = bootstrap_interval(differences, num_resamples=1000, seed=seed)
        num_covered += low <= 0.15 <= high
    assert 930 <= num_covered <= 970


def test_equal_differences_have_no_bootstrap_interval():
    assert bootstrap_interval([0, 0, 0]) is None
    assert bootstrap_interval([1]) is None


def test_the_bootstrap_gives_the_same_interval_again():
    assert bootstrap_interval([1, 0, 0, -1, 1]) == bootstrap_interval([1, 0, 0, -1, 1])


@pytest.mark.parametrize(("won", "lost", "p"), [(0, 0, 1), (1, 0, 1), (5, 0, 1 / 16), (8, 2, 112 / 1024), (3, 3, 1)])
def test_the_sign_test_worked_by_hand(won, lost, p):
    assert sign_test(won, lost) == sign_test(lost, won) == pytest.approx(p)


def test_the_sign_test_is_wrong_at_most_5_times_in_100():
    chance = random.Random(0)
    wins = [sum(chance.random() < 0.5 for _ in range(40)) for _ in range(2000)]
    assert mean(sign_test(won, 40 - won) < 0.05 for won in wins) <= 0.05


def test_holms_p_values_worked_by_hand():
    assert adjusted_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted_p_values([0.9, 0.8]) == [1, 1]
    assert adjusted_p_values([]) == []
