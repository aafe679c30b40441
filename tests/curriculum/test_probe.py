import time

from rgtrain.curriculum.probe import make_problems
from rgtrain.problems.mixture import DatasetSpec


def test_a_dataset_that_never_returns_times_out():
    endless = DatasetSpec("jugs", params={"num_jugs": 7, "difficulty": 20})
    easy = DatasetSpec("chain_sum")
    started = time.monotonic()
    assert make_problems([easy, endless, easy], timeout_s=5) == [True, False, True]
    assert time.monotonic() - started < 120
