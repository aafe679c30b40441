import itertools
import math

import numpy
import pytest

from rgtrain.stats import PairedSums, adjusted_p_values, difference_interval, mean_difference, sign_flip_test

# The numbers of answers to each question before and after: one each, question repeated unequally often, and endpoints
# that refused some of 8 requests.
ONCE = ([1] * 40, [1] * 40)
UNEQUAL = ([9, 8, 7, 6, 5, 4, 3, 3, 2, 2, 2] + [1] * 15,) * 2
REFUSED = ([8, 8, 7, 5, 8] * 6, [8, 6, 8, 8, 8] * 6)


def simulated(counts, *, gain, is_greedy, seed, num_runs):
    """Yield the answers of two models to questions of uniformly distributed difficulty, and the expected difference."""
    random = numpy.random.default_rng(seed)
    before, after = map(numpy.asarray, counts)
    for _ in range(num_runs):
        first = random.random(len(before))
        second = first + gain * (1 - first)
        if is_greedy:
            right = before * (random.random(len(before)) < first), after * (random.random(len(after)) < second)
        else:
            right = random.binomial(before, first), random.binomial(after, second)
        yield [PairedSums(*row) for row in zip(*(x.tolist() for x in (right[0], before, right[1], after)), strict=True)]


@pytest.mark.parametrize("gain", [0, 0.3])
@pytest.mark.parametrize(("counts", "is_greedy"), [(ONCE, True), (UNEQUAL, True), (UNEQUAL, False), (REFUSED, False)])
def test_intervals_of_differences_cover_the_truth_about_95_times_in_100(counts, is_greedy, gain):
    runs = simulated(counts, gain=gain, is_greedy=is_greedy, seed=1, num_runs=400)
    intervals = [difference_interval(run, num_resamples=500, seed=seed) for seed, run in enumerate(runs)]
    # Two standard errors of 400 runs are 2.2 points, and intervals from 26 questions are 1 or 2 points too narrow.
    assert 0.92 <= numpy.mean([low <= gain / 2 <= high for low, high in intervals]) <= 0.98


@pytest.mark.parametrize(("counts", "is_greedy"), [(ONCE, True), (UNEQUAL, True), (UNEQUAL, False), (REFUSED, False)])
def test_equal_models_differ_significantly_in_at_most_5_percent_of_cases(counts, is_greedy, monkeypatch):
    monkeypatch.setattr("rgtrain.stats.paired._NUM_FLIPS", 2000)
    runs = simulated(counts, gain=0, is_greedy=is_greedy, seed=2, num_runs=200)
    # Two standard errors of 200 runs are 3 points.
    assert numpy.mean([sign_flip_test(run) < 0.05 for run in runs]) <= 0.08


def test_answers_are_weighted_equally_in_the_difference_and_its_interval():
    # 90 of 100 answers belong to one question that was won, and the 10 other questions were lost.
    questions = [PairedSums(0, 90, 90, 90)] + [PairedSums(1, 1, 0, 1)] * 10
    difference = mean_difference(questions)
    low, high = difference_interval(questions)
    assert difference == pytest.approx(0.8)
    assert low <= difference <= high
    # 40 % of the resamples lack the heavy question, so nearly every difference is possible.
    assert (low, high) == (pytest.approx(-1, abs=0.01), pytest.approx(1, abs=0.05))
    # Ten losses don't outweigh one win of ninety answers: the sign of the heavy question decides, either way.
    assert sign_flip_test(questions) == 1


def test_the_resampled_differences_are_ratios_of_sums():
    questions = [PairedSums(0, 2, 2, 2), PairedSums(1, 1, 0, 3), PairedSums(1, 4, 3, 4)]
    ratios = []
    for drawn in itertools.product(questions, repeat=3):
        before, num_before, after, num_after = map(sum, zip(*drawn, strict=True))
        ratios.append(after / num_after - before / num_before)
    low, high = difference_interval(questions, num_resamples=5000)
    # The interval is wider than the percentiles, because three questions know little of their spread.
    assert (low, high) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))


def test_repeating_every_answer_changes_neither_interval_nor_p_value():
    once = [PairedSums(0, 1, 1, 1)] * 6 + [PairedSums(1, 1, 0, 1)] * 2 + [PairedSums(1, 1, 1, 1)] * 8
    thrice = [PairedSums(*(3 * value for value in pair)) for pair in once]
    assert difference_interval(thrice) == pytest.approx(difference_interval(once))
    assert sign_flip_test(thrice) == pytest.approx(sign_flip_test(once))


@pytest.mark.parametrize(
    ("questions", "interval"),
    [
        # Tango's interval for n equal pairs is +- z^2 / (n + z^2), and for n won ones from (n - z^2) / (n + z^2) to 1.
        ([PairedSums(0, 1, 0, 1)] * 5, (-0.4345, 0.4345)),
        ([PairedSums(8, 8, 8, 8)] * 5, (-0.4345, 0.4345)),
        ([PairedSums(0, 1, 1, 1)] * 5, (0.1310, 1)),
        ([PairedSums(1, 1, 0, 1)] * 5, (-1, -0.1310)),
        ([PairedSums(0, 1, 0, 1)], (-0.7935, 0.7935)),
        ([PairedSums(2, 8, 6, 8)], (-0.6902, 0.8967)),
        # Different numbers of answers, but equal shares.
        ([PairedSums(2, 4, 1, 2)] * 5, (-0.4345, 0.4345)),
        # 90 of 93 answers to one question: little more than one question.
        ([PairedSums(0, 90, 0, 90)] + [PairedSums(0, 1, 0, 1)] * 3, (-0.7826, 0.7826)),
    ],
)
def test_equal_differences_and_single_questions_have_an_interval(questions, interval):
    assert difference_interval(questions) == pytest.approx(interval, abs=1e-4)


def test_pairing_removes_the_spread_between_questions():
    random = numpy.random.default_rng(0)
    chances, noise = random.random(12) * 0.6, random.normal(0, 0.01, size=12)
    rows = zip(chances.tolist(), (chances + 0.1 + noise).tolist(), strict=True)
    low, high = difference_interval([PairedSums(before, 1, after, 1) for before, after in rows])
    # The accuracies spread by 0.17 between questions, their differences by 0.01.
    assert low == pytest.approx(0.1, abs=0.02) and high == pytest.approx(0.1, abs=0.02)


def test_no_questions_are_refused():
    for function in (mean_difference, difference_interval, sign_flip_test):
        with pytest.raises(ValueError, match="over no questions"):
            function([])


def test_the_bootstrap_is_reproducible():
    questions = [PairedSums(0, 1, 1, 2), PairedSums(1, 3, 3, 3), PairedSums(1, 1, 0, 1)]
    assert difference_interval(questions) == difference_interval(questions)


@pytest.mark.parametrize(("won", "lost", "p"), [(0, 0, 1), (1, 0, 1), (5, 0, 1 / 16), (8, 2, 112 / 1024), (3, 3, 1)])
def test_with_one_answer_per_question_the_test_is_mcnemars_exact_test(won, lost, p):
    questions = [PairedSums(0, 1, 1, 1)] * won + [PairedSums(1, 1, 0, 1)] * lost + [PairedSums(1, 1, 1, 1)]
    swapped = [PairedSums(after, m, before, n) for before, n, after, m in questions]
    assert sign_flip_test(questions) == pytest.approx(p)
    assert sign_flip_test(swapped) == pytest.approx(p)


def test_the_test_counts_all_exchanges_of_the_models():
    questions = [PairedSums(0, 4, 3, 4), PairedSums(1, 2, 2, 2), PairedSums(3, 4, 2, 4), PairedSums(0, 1, 1, 1)]
    observed = mean_difference(questions)
    exchanged = [
        sum(sign * (pair.after - pair.before) for sign, pair in zip(signs, questions, strict=True)) / 11
        for signs in itertools.product((1, -1), repeat=4)
    ]
    expected = numpy.mean([abs(difference) >= observed - 1e-9 for difference in exchanged])
    assert sign_flip_test(questions) == pytest.approx(expected)


def test_the_drawn_exchanges_agree_with_all_of_them(monkeypatch):
    questions = [PairedSums(0, 4, 1 + n % 3, 4) for n in range(4)] + [PairedSums(1, 2, 0, 2)] * 4
    counted = sign_flip_test(questions)
    monkeypatch.setattr("rgtrain.stats.paired._MAX_OUTCOMES", 1)
    assert sign_flip_test(questions) == pytest.approx(counted, abs=3 * math.sqrt(counted / 20_000))
    assert sign_flip_test([PairedSums(0, 1, 1, 1)] * 40) > 0


def test_many_questions_take_little_time():
    random = numpy.random.default_rng(0)
    numbers = random.integers(1, 9, size=(3000, 2))
    right = random.binomial(numbers, 0.5)
    rows = zip(right[:, 0].tolist(), numbers[:, 0].tolist(), right[:, 1].tolist(), numbers[:, 1].tolist(), strict=True)
    questions = [PairedSums(*row) for row in rows]
    low, high = difference_interval(questions, num_resamples=100)
    assert low < 0 < high or sign_flip_test(questions) < 0.05


def test_holms_p_values_agree_with_a_calculation_by_hand():
    assert adjusted_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted_p_values([0.9, 0.8]) == [1, 1]
    assert adjusted_p_values([]) == []
