import numpy
import pytest

from rgtrain.stats import false_discovery_p_values, fisher_exact_gain


def test_fishers_test_agrees_with_a_calculation_by_hand():
    # 8 successes, all among the second half: C(256, 8) / C(512, 8).
    assert fisher_exact_gain(0, 8, num_before=256, num_after=256) == pytest.approx(0.003695, rel=1e-3)
    assert fisher_exact_gain(3, 0, num_before=10, num_after=10) == 1
    with pytest.raises(ValueError, match="5 of 4"):
        fisher_exact_gain(0, 5, num_before=4, num_after=4)


def test_adjusted_p_values_are_monotonous_and_agree_with_a_calculation_by_hand():
    assert false_discovery_p_values([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert false_discovery_p_values([]) == []


def test_false_discoveries_are_a_small_share_of_all():
    random = numpy.random.default_rng(0)
    shares = []
    for _ in range(200):
        # 80 problems stay unsolved but for luck, 20 are solved in 10 % of tries.
        chances = [0.001] * 80 + [0.1] * 20
        counts = [(random.binomial(256, 0.001), random.binomial(256, chance)) for chance in chances]
        p_values = [fisher_exact_gain(*map(int, pair), num_before=256, num_after=256) for pair in counts]
        found = [adjusted < 0.05 for adjusted in false_discovery_p_values(p_values)]
        assert sum(found[80:]) >= 18
        shares.append(sum(found[:80]) / sum(found))
    assert numpy.mean(shares) <= 0.05
