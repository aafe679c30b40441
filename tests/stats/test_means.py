import math
import statistics

import pytest

from rgtrain.stats import clustered_standard_error, mean


def test_the_mean_of_no_values_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean([])


def test_the_standard_error_of_no_values_is_refused():
    with pytest.raises(ValueError, match="no values"):
        clustered_standard_error([], clusters=[])


def test_a_wrong_number_of_cluster_labels_is_refused():
    with pytest.raises(ValueError, match="2 values but 1 cluster"):
        clustered_standard_error([0, 1], clusters=["a"])


def test_one_value_per_cluster_gives_the_textbook_error():
    values = [0.0, 0.25, 1.0, 1.0, 0.5]
    assert clustered_standard_error(values, clusters=range(5)) == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_the_error_for_clusters_of_unequal_size_agrees_with_a_calculation_by_hand():
    # The mean is 0.5, and the clusters' sums of deviations are 0.5, -1 and 0.5. The error is
    # sqrt(3 / 2 * (0.25 + 1 + 0.25)) / 4.
    error = clustered_standard_error([1, 0, 0, 1], clusters=["a", "b", "b", "c"])
    assert error == pytest.approx(math.sqrt(1.5 * 1.5) / 4)


def test_repeating_every_answer_does_not_reduce_the_error():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    once = clustered_standard_error(values, clusters=range(5))
    assert clustered_standard_error(values * 4, clusters=list(range(5)) * 4) == pytest.approx(once)


def test_a_single_cluster_has_no_error():
    assert clustered_standard_error([0, 1, 1], clusters="aaa") is None


def test_equal_values_have_error_zero():
    assert clustered_standard_error([1, 1, 1], clusters="abc") == 0
