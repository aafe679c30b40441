"""The bootstrap of validation metrics has the results of verl's loop."""

import numpy as np
import pytest
from verl.trainer.ppo.metric_utils import bootstrap_metric

from rgtrain.upstream.bootstrapping import in_one_operation


@pytest.mark.parametrize(
    "data", [[0.0, 1.0, 0.0], [0.5, 0.25, 1, 0], [0.1] * 5, [True, False], [float("inf"), 1.0], [7.0]]
)
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_best_and_worst_of_resamples_equal_those_of_verl(data, size):
    reduce = [np.max, np.min]
    found = in_one_operation(bootstrap_metric)(data, size, reduce, n_bootstrap=200)
    assert np.allclose(found, bootstrap_metric(data, size, reduce, n_bootstrap=200), atol=1e-15, equal_nan=True)


def test_other_reductions_are_left_to_verl():
    def majority(sample):
        return sample[0]["val"]

    data = [{"val": 1.0, "pred": "a"}, {"val": 0.0, "pred": "b"}]
    found = in_one_operation(bootstrap_metric)(data, 2, [majority], n_bootstrap=50)
    assert found == bootstrap_metric(data, 2, [majority], n_bootstrap=50)
