import dataclasses
import json

import pytest
from support.evaluated import SUMS, answers_of, finished_evaluation, small_config, write_results

from rgtrain.errors import ConfigError
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.evaluation_reader import read_evaluation


def test_a_comparison_is_paired_by_problem(pair):
    [comparison] = compare(pair)
    sums, words = comparison.datasets
    assert (sums.before, sums.after, sums.difference) == (0.25, 0.75, 0.5)
    assert (sums.num_won, sums.num_lost, words.num_won, words.num_lost) == (2, 0, 1, 1)
    assert (comparison.overall.num_won, comparison.overall.num_lost) == (3, 1)
    assert comparison.overall.p_value == pytest.approx(10 / 16)
    assert sums.adjusted_p_value == pytest.approx(min(1, 2 * sums.p_value))


def test_the_difference_of_models_with_equal_answers_has_an_interval_around_0(pair):
    [comparison] = compare([pair[0], pair[0]])
    assert comparison.overall.interval == pytest.approx((-0.3903, 0.3903), abs=1e-4)
    assert comparison.overall.p_value == 1


def test_a_question_that_repeats_weighs_as_much_in_the_interval_as_in_the_points(tmp_path):
    """Nearly all answers are to one question, which was won, while most questions stay as they were."""
    evaluations = []
    for name, num_right in (("base", 0), ("trained", 14)):
        config = small_config(tmp_path, model_path=f"models/{name}", datasets=(dataclasses.replace(SUMS, size=25),))
        answers = answers_of(config, [1] * num_right + [0] * (25 - num_right))
        answers = [dataclasses.replace(a, fingerprint="same" if a.problem < 14 else a.fingerprint) for a in answers]
        evaluations.append(read_evaluation(write_results(config, answers).path))
    [comparison] = compare(evaluations)
    for row in (comparison.overall, *comparison.datasets):
        assert (row.num_problems, row.num_questions, row.num_won) == (25, 12, 1)
        assert row.difference == pytest.approx(0.56)
        low, high = row.interval
        # Any number of the resampled questions may be the one that was won.
        assert low <= 0.05 and high >= 0.75
        assert row.p_value == 1


def test_every_row_has_the_interval_of_the_difference_beside_it(tmp_path):
    rounds = {"base": [[1, 0, 0, 0, 0, 0], [0] * 6, [0, 1, 0, 0, 0, 0]], "trained": [[1, 1, 0, 1, 1, 0]] * 3}
    evaluations = []
    for name, scores in rounds.items():
        config = small_config(tmp_path, model_path=f"models/{name}", temperature=1, eval_repeats=3)
        answers = [answer for repeat, row in enumerate(scores) for answer in answers_of(config, row, repeat=repeat)]
        if name == "trained":
            answers[0] = dataclasses.replace(answers[0], refused="content filter", score=0.0)
            answers = [dataclasses.replace(a, refused="no") if a.problem == 2 else a for a in answers]
        evaluations.append(read_evaluation(write_results(config, answers).path))
    [comparison] = compare(evaluations)
    rows = [*comparison.datasets, *comparison.categories, comparison.overall, *comparison.at_k]
    names = ["chain_sum", "spell_backward", "arithmetic (all)", "words (all)", "overall"]
    assert [row.name for row in rows] == [*names, "pass@2", "pass@3", "majority@2", "majority@3"]
    for row in rows:
        assert -1 <= row.interval[0] <= row.difference <= row.interval[1] <= 1
        assert row.interval[0] < row.interval[1]
        assert 0 < row.p_value <= row.adjusted_p_value <= 1
    assert comparison.num_unpaired == 1
    # Two of the trained model's answers to the first problem are left, so that it does not count for k = 3.
    assert [row.num_problems for row in rows] == [3, 2, 3, 2, 5, 5, 4, 5, 4]
    assert comparison.overall.before == pytest.approx(2 / 15)
    assert comparison.overall.after == pytest.approx(11 / 14)
    assert comparison.at_k[0].before == pytest.approx((2 / 3 + 2 / 3) / 5)


def test_evaluations_of_different_datasets_are_not_compared(pair, tmp_path):
    fewer = finished_evaluation(tmp_path, "fewer", [0] * 4, datasets=(SUMS,))
    with pytest.raises(ConfigError, match="can't be compared because they differ in datasets"):
        compare([pair[0], fewer])


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
