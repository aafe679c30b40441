import numpy
import pytest

from rgtrain.stats import clustered_standard_error, effective_size, mean_interval, share_interval, t_quantile, t_tail


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042), (100, 1.984)])
def test_the_t_quantile_agrees_with_published_tables(degrees, quantile):
    assert t_quantile(0.975, degrees=degrees) == pytest.approx(quantile, abs=5e-4)
    assert t_quantile(0.025, degrees=degrees) == pytest.approx(-quantile, abs=5e-4)
    assert t_tail(t_quantile(0.7, degrees=degrees), degrees=degrees) == pytest.approx(0.6)


def test_students_t_without_degrees_of_freedom_is_refused():
    assert (t_quantile(0.5, degrees=3), t_tail(0, degrees=3)) == (0, 1)
    with pytest.raises(ValueError, match="0.5 degrees of freedom"):
        t_tail(1, degrees=0.5)
    with pytest.raises(ValueError, match="no quantile of the probability 1"):
        t_quantile(1, degrees=3)


def test_the_share_interval_agrees_with_a_calculation_by_hand():
    # Wilson's interval for 8 of 10 is (8 + z^2 / 2) / (10 + z^2) +- z sqrt(1.6 + z^2 / 4) / (10 + z^2) with z = 1.96.
    assert share_interval(0.8, num_independent=10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert mean_interval([1] * 8 + [0] * 2, clusters=range(10)) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(("value", "interval"), [(0, (0, 0.4345)), (1, (0.5655, 1)), (0.5, (0.2827, 0.7173))])
def test_equal_values_have_an_interval_of_positive_width(value, interval):
    assert mean_interval([value] * 5, clusters=range(5)) == pytest.approx(interval, abs=1e-4)


def test_partial_credit_that_varies_less_than_right_and_wrong_has_a_narrower_interval():
    scores = [0.4, 0.6] * 50
    low, high = mean_interval(scores, clusters=range(100))
    assert (low, high) == pytest.approx((0.474, 0.526), abs=1e-3)
    assert high - low < 0.3 * (share_interval(0.5, num_independent=100)[1] - 0.5) * 2


@pytest.mark.parametrize(
    ("values", "clusters", "size"),
    [
        ([0, 1, 1, 0], "abcd", 4),
        # All answers to a question agree, so repeats add nothing.
        ([0, 0, 1, 1], "aabb", 2),
        ([0, 0, 0, 0], "aabb", 2),
        ([0, 1, 1], "aaa", 1),
        # Answers to a question agree less than chance, which does not make them more than they are.
        ([0, 1, 0, 1], "aabb", 4),
        # 7 of 9 answers to one question: 81 / (49 + 1 + 1).
        ([1] * 9, "aaaaaaabc", 81 / 51),
    ],
)
def test_the_effective_size_agrees_with_a_calculation_by_hand(values, clusters, size):
    assert effective_size(values, clusters=clusters) == pytest.approx(size)


def test_the_effective_size_lies_between_the_numbers_of_questions_and_answers():
    values = [1, 1, 0, 0, 1, 0, 1, 0]
    between, within = 2 * (0.25 + 0.25) / 3, (0.5 + 0.5) / 4
    correlation = (between - within) / (between + within)
    assert effective_size(values, clusters="aabbccdd") == pytest.approx(8 / (1 + correlation))


def test_repeating_every_answer_does_not_narrow_the_interval():
    once = mean_interval([1, 0, 0, 1, 0], clusters=range(5))
    assert mean_interval([1, 0, 0, 1, 0] * 4, clusters=[*range(5)] * 4) == pytest.approx(once)


def test_values_without_their_clusters_are_refused():
    with pytest.raises(ValueError, match="2 values but 1 cluster"):
        effective_size([0, 1], clusters="a")
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], clusters=[])
    with pytest.raises(ValueError, match="from 0 answers"):
        share_interval(0, num_independent=0)


ONCE = [1] * 100
EQUAL = [3] * 60
UNEQUAL = [12, 10, 9, 8, 7, 6, 5, 4, 4, 3, 3, 3, 2, 2, 2] + [1] * 20


@pytest.mark.parametrize("is_greedy", [True, False])
@pytest.mark.parametrize("counts", [ONCE, EQUAL, UNEQUAL], ids=["once", "equal repeats", "unequal repeats"])
@pytest.mark.parametrize("difficulty", [(1, 1), (0.5, 2)])
def test_intervals_cover_the_truth_about_95_times_in_100(counts, is_greedy, difficulty):
    random = numpy.random.default_rng(0)
    first, second = difficulty
    truth = first / (first + second)
    clusters = numpy.repeat(numpy.arange(len(counts)), counts)
    num_covered = 0
    for _ in range(400):
        chances = random.beta(first, second, size=len(counts))
        drawn = random.random(len(counts))[clusters] if is_greedy else random.random(len(clusters))
        values = (drawn < chances[clusters]).astype(float).tolist()
        low, high = mean_interval(values, clusters=clusters.tolist())
        num_covered += low <= truth <= high
    assert 0.92 <= num_covered / 400 <= 0.985


@pytest.mark.parametrize(("num_questions", "upper"), [(25, 0.1332), (307, 0.0124), (5000, 0.0008)])
def test_the_interval_of_no_right_answer_depends_on_the_number_of_questions(num_questions, upper):
    assert mean_interval([0] * num_questions, clusters=range(num_questions)) == pytest.approx((0, upper), abs=5e-5)


def test_a_share_between_0_and_1_has_a_width_if_every_question_has_the_same_share():
    clusters = [question for question in range(20) for _ in range(2)]
    assert clustered_standard_error([0, 1] * 20, clusters=clusters) == 0
    low, high = mean_interval([0, 1] * 20, clusters=clusters)
    assert (low, high) == pytest.approx(share_interval(0.5, num_independent=40))


def test_ten_answers_to_each_of_30_questions_are_not_300_answers():
    values = [1] * 49 + [0] * 251
    low, high = mean_interval(values, clusters=[answer // 10 for answer in range(300)])
    pooled = share_interval(49 / 300, num_independent=300)
    assert low < pooled[0] - 0.04 and high > pooled[1] + 0.1
