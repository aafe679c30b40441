import numpy
import pytest

from rgtrain.stats import Block, crossed_contrast

NUM_RUNS = 250


def simulated_blocks(
    random, *, num_trainings, seed_spread, problem_spread, center, num_problems=40, num_strata=2, base_spread=None
):
    """Return the blocks of two arms with the same expected accuracy.

    An answer's log odds are the sum of the dataset's center, the problem's difficulty, the effect of the arm at the
    problem (`problem_spread`), the effect of the training (`seed_spread`) and that of the training at the problem.
    """
    spreads = {1: seed_spread, -1: seed_spread if base_spread is None else base_spread}
    effects = {sign: random.normal(0, spread, (num_trainings, 1)) for sign, spread in spreads.items()}
    blocks = []
    for stratum in range(num_strata):
        difficulty = random.normal(center + stratum, 1.5, num_problems)
        at_problem = random.normal(0, problem_spread, num_problems)
        for sign, effect in effects.items():
            both = random.normal(0, 0.3, (num_trainings, num_problems))
            odds = difficulty + sign * at_problem + effect + both
            values = random.binomial(8, 1 / (1 + numpy.exp(-odds))) / 8
            blocks.append(Block(sign, stratum, sign / num_strata, values, bool(spreads[sign])))
    return blocks


@pytest.mark.parametrize("num_trainings", [3, 5])
@pytest.mark.parametrize(
    ("case", "least", "most"),
    [
        ({"seed_spread": 0.3, "problem_spread": 0, "center": -1.4}, 0.92, 0.99),
        ({"seed_spread": 0.3, "problem_spread": 1, "center": -1.4}, 0.92, 0.99),
        # An untrained model has no seeds of training.
        ({"seed_spread": 0.3, "base_spread": 0, "problem_spread": 0.5, "center": -1.4}, 0.92, 1),
        # Nearly all problems have no right answer.
        ({"seed_spread": 0.3, "problem_spread": 0, "center": -5}, 0.92, 1),
        ({"seed_spread": 0.3, "problem_spread": 0, "center": -1.4, "num_problems": 16, "num_strata": 1}, 0.92, 1),
        # Without any effect of seeds and arms, sampling is counted twice and intervals are too wide.
        ({"seed_spread": 1e-9, "problem_spread": 0, "center": -1.4}, 0.95, 1),
    ],
)
def test_intervals_cover_equal_arms_and_tests_reject_them_in_at_most_5_percent_of_cases(
    num_trainings, case, least, most
):
    random = numpy.random.default_rng(1)
    contrasts = [
        crossed_contrast(simulated_blocks(random, num_trainings=num_trainings, **case)) for _ in range(NUM_RUNS)
    ]
    covered = numpy.mean([low <= 0 <= high for low, high in (each.interval for each in contrasts)])
    # Two standard errors of a share of 5 % in 250 runs are 2.8 points.
    assert least <= covered <= most
    assert numpy.mean([each.p_value < 0.05 for each in contrasts]) == pytest.approx(1 - covered, abs=1e-9)


def test_one_clustering_by_problem_alone_misses_the_variance_of_seeds():
    random = numpy.random.default_rng(0)
    rejections = 0
    for _ in range(200):
        blocks = simulated_blocks(random, num_trainings=3, seed_spread=0.3, problem_spread=0, center=-1.4)
        problems = numpy.concatenate([blocks[i].values.mean(0) - blocks[i + 1].values.mean(0) for i in (0, 2)])
        rejections += abs(problems.mean()) > 2 * problems.std(ddof=1) / len(problems) ** 0.5
    assert rejections / 200 > 0.2


def test_the_variance_agrees_with_a_calculation_by_hand():
    values = numpy.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    contrast = crossed_contrast([Block("a", "x", 1, values)])
    # Means of trainings 1/3 and 2/3; of problems 0, 1/2 and 1, with contributions -1/6, 0 and 1/6, so k is 2.
    by_trainings, by_problems = (1 / 18) / 2, (1 / 4) / 3 * (1 + 2 / 2)
    residuals = values - values.mean(1)[:, None] - values.mean(0) + 0.5
    both = (residuals**2).sum() / (1 * 2) / 6
    variance = by_trainings + by_problems - both
    assert contrast.standard_error**2 == pytest.approx(max(variance, by_problems))
    assert contrast.degrees == pytest.approx(contrast.standard_error**4 / (by_trainings**2 / 1 + by_problems**2 / 2))
    assert (contrast.estimate, contrast.num_trainings, contrast.num_problems) == (0.5, 2, 3)


@pytest.mark.parametrize(("num_solved", "exact"), [(4, 0.125), (5, 0.0625), (6, 0.03125), (8, 0.0078)])
def test_a_few_solved_problems_have_about_the_p_value_of_the_exact_sign_test(num_solved, exact):
    values = numpy.zeros((5, 100))
    values[:, :num_solved] = 1
    blocks = [Block("after", "x", 1, values), Block("before", "x", -1, numpy.zeros((5, 100)))]
    assert crossed_contrast(blocks).p_value == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("value", [0, 1])
def test_equal_values_have_an_interval_of_positive_width(value):
    blocks = [
        Block("after", "x", 1, numpy.full((3, 40), float(value))),
        Block("before", "x", -1, numpy.zeros((3, 40))),
    ]
    contrast = crossed_contrast(blocks)
    low, high = contrast.interval
    assert low <= value <= high and high - low > 0.05
    assert (contrast.p_value < 0.001) == bool(value)


def test_a_single_training_gets_the_variance_of_the_other_group():
    values = numpy.random.default_rng(0).random((3, 20))
    blocks = [Block("a", "x", 1, values[:1]), Block("b", "x", -1, values[1:])]
    contrast = crossed_contrast(blocks)
    assert contrast.standard_error**2 >= 1.5 * values[1:].mean(1).var(ddof=1) - 1e-12
    with pytest.raises(ValueError, match="every group has a single training"):
        crossed_contrast(blocks[:1])


def test_a_group_without_a_seed_effect_adds_no_variance_of_trainings():
    values = numpy.random.default_rng(0).random((3, 20))
    untrained = Block("b", "x", -1, values[:1], has_seed_effect=False)
    contrast = crossed_contrast([Block("a", "x", 1, values[1:]), untrained])
    problems = values[1:].mean(0) - values[0]
    assert contrast.standard_error**2 >= problems.var(ddof=1) / 20
    assert crossed_contrast([untrained]).interval[0] > -1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [([], "no blocks"), ([(3, 4), (2, 4)], "different numbers of trainings"), ([(3, 4), (3, 5)], "the same problems")],
)
def test_blocks_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        crossed_contrast([Block("a", "x", 1, numpy.zeros(shape)) for shape in shapes])
