import dataclasses
import json

import pytest
from support.evaluated import SUMS, finished_evaluation

from rgtrain.errors import ConfigError
from rgtrain.reporting.comparison import compare


def test_a_comparison_is_paired_by_problem(pair):
    [comparison] = compare(pair)
    sums, words = comparison.datasets
    assert (sums.before, sums.after, sums.difference) == (0.25, 0.75, 0.5)
    assert (sums.num_won, sums.num_lost, words.num_won, words.num_lost) == (2, 0, 1, 1)
    assert (comparison.overall.num_won, comparison.overall.num_lost) == (3, 1)
    assert comparison.overall.p_value == pytest.approx(10 / 16)
    assert sums.adjusted_p_value == pytest.approx(min(1, 2 * sums.p_value))


def test_the_difference_of_models_with_equal_answers_has_no_interval(pair):
    [comparison] = compare([pair[0], pair[0]])
    assert comparison.overall.interval is None
    assert comparison.overall.p_value == 1


def test_every_other_model_is_compared_with_the_first(pair, tmp_path):
    third = finished_evaluation(tmp_path, "third", [0] * 6)
    comparisons = compare([*pair, third])
    assert [(c.before, c.after) for c in comparisons] == [
        ("models/base", name) for name in ("models/trained", "models/third")
    ]


def test_a_dataset_that_occurs_twice_gets_two_names(tmp_path):
    datasets = (SUMS, dataclasses.replace(SUMS, seed=7), dataclasses.replace(SUMS, category="other"))
    twice = finished_evaluation(tmp_path, "base", [0] * 12, datasets=datasets)
    names = [row.name for row in compare([twice, twice])[0].datasets]
    assert names == ["chain_sum (1)", "chain_sum (2)", "other/chain_sum"]


def test_evaluations_with_different_settings_are_not_compared(pair, tmp_path):
    other = finished_evaluation(tmp_path, "hot", [0] * 6, temperature=1, dtype="bfloat16")
    with pytest.raises(
        ConfigError, match=r"they differ in temperature \(0 and 1\); evaluate both models with the same"
    ):
        compare([pair[0], other])


def test_evaluations_of_different_problems_are_not_compared(pair):
    summary = json.loads(json.dumps(pair[1].summary))
    summary["datasets"][0]["problems_digest"] = "other"
    with pytest.raises(ConfigError, match="they asked different problems of dataset 'chain_sum'"):
        compare([pair[0], dataclasses.replace(pair[1], summary=summary)])


def test_a_single_evaluation_is_not_compared(pair):
    with pytest.raises(ConfigError, match="give two or more evaluations"):
        compare(pair[:1])
