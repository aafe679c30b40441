import sys

import numpy
import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.stats import Block, crossed_contrast

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.calibration import CASES, rejected_share, simulated_blocks

NUM_RUNS = 250


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("case", [case for case, arguments in CASES.items() if "failed_share" not in arguments])
def test_equal_arms_differ_significantly_in_at_most_5_percent_of_cases(num_seeds, case):
    share = rejected_share(num_trainings=(num_seeds, num_seeds), num_runs=NUM_RUNS, seed=1, **CASES[case])
    # Two standard errors of a share of 5 % in 250 runs are 2.8 points. evidence/calibration.py has more runs.
    assert share <= 0.078


def test_intervals_cover_the_truth_about_95_times_in_100():
    random = numpy.random.default_rng(1)
    pairs = (simulated_blocks(random, num_trainings=(5, 5), **CASES["seeds differ"]) for _ in range(NUM_RUNS))
    intervals = [crossed_contrast(blocks).interval for blocks in pairs]
    assert 0.92 <= numpy.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_one_clustering_by_problem_alone_misses_the_variance_of_seeds():
    random = numpy.random.default_rng(0)
    rejections = 0
    for _ in range(200):
        blocks = simulated_blocks(random, num_trainings=(3, 3), **CASES["seeds differ"])
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
