"""Held-out accuracy before training, now and at its best, with intervals."""

import pytest

from rgtrain.checkpoints.validation_accuracy import held_out_accuracies, overall_accuracy
from rgtrain.stats import share_interval


def record(step: int, **means: object) -> dict:
    return {"step": step, "loss": 1.0} | {f"val-core/{name}/acc/mean@1": mean for name, mean in means.items()}


def test_each_dataset_has_values_with_the_interval_of_its_problems():
    records = [record(0, gcd=0.25, lcm=0.5), {"step": 1}, record(2, gcd=0.75, lcm=0.5), record(4, gcd=0.5, lcm=0.25)]
    gcd, lcm = held_out_accuracies(records, validation_size=64)
    assert (gcd.dataset, lcm.dataset) == ("gcd", "lcm")
    assert gcd.values == {
        "before": (0, 0.25, *share_interval(0.25, num_independent=32)),
        "now": (4, 0.5, *share_interval(0.5, num_independent=32)),
        "best": (2, 0.75, *share_interval(0.75, num_independent=32)),
    }
    # The earlier of two equal steps.
    assert lcm.values["best"][0] == 0
    overall = overall_accuracy([gcd, lcm], validation_size=64)
    assert overall.values["now"] == (4, 0.375, *share_interval(0.375, num_independent=64))
    assert overall.values["before"][:2] == (0, 0.375)


def test_a_run_without_validation_has_no_accuracy():
    assert held_out_accuracies([{"step": 1, "train/gcd/acc": 0.5}], validation_size=64) == []


def test_without_a_validation_before_training_there_is_no_value_before():
    [gcd] = held_out_accuracies([record(2, gcd=0.75)], validation_size=64)
    assert gcd.values.keys() == {"now", "best"}


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), 10**400, [0.5]])
def test_a_value_that_is_no_score_is_ignored(value):
    [gcd] = held_out_accuracies([record(0, gcd=0.5), record(2, gcd=value)], validation_size=4)
    assert gcd.values["now"][:2] == (0, 0.5)


def test_the_mean_of_datasets_needs_values_of_one_step():
    both = held_out_accuracies([record(0, gcd=0.5, lcm=0.5), record(2, gcd=1.0)], validation_size=4)
    assert overall_accuracy(both, validation_size=4).values.keys() == {"before"}


def test_the_intervals_of_validation_files_have_the_sizes_of_their_datasets():
    records = [record(2, gcd=0.5, lcm=0.5)]
    gcd, lcm = held_out_accuracies(records, validation_size=110, datasets={"gcd": {"size": 100}, "lcm": {"size": 10}})
    [alone] = held_out_accuracies([record(2, gcd=0.5)], validation_size=100)
    assert gcd.values == alone.values
    assert lcm.values["now"][2] < gcd.values["now"][2]
