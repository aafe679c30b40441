"""Aggregates over judged answers."""

import dataclasses

import pytest
from support.evaluated import answers_of

from rgtrain.evaluation.measures import Estimate, measure
from rgtrain.stats import share_interval


def test_partial_credit_counts_in_the_mean_but_not_in_the_accuracy(answers):
    measures = measure(answers[:4])
    assert (measures.strict_accuracy, measures.mean_score) == (0.5, 0.625)


def test_answers_to_one_problem_are_one_cluster(answers):
    repeated = [dataclasses.replace(answer, repeat=repeat) for answer in answers for repeat in range(3)]
    once, thrice = measure(answers), measure(repeated)
    assert (thrice.num_problems, thrice.num_answers) == (6, 18)
    assert thrice.strict_accuracy_error == pytest.approx(once.strict_accuracy_error)
    assert thrice.strict_accuracy_interval == pytest.approx(once.strict_accuracy_interval)


def test_problems_with_the_same_question_count_as_one_independent_answer(answers):
    again = [dataclasses.replace(answers[0], problem=problem) for problem in range(90, 94)]
    measures = measure([answers[0], *again, answers[2]])
    assert (measures.num_problems, measures.num_questions, measures.num_answers) == (6, 2, 6)
    # Kish's number for 5 answers to one question and 1 to another.
    assert measures.effective_sample_size == pytest.approx(36 / 26)
    assert measures.strict_accuracy_interval == pytest.approx(share_interval(5 / 6, num_independent=36 / 26))


def test_measures_without_variation_have_an_interval_that_depends_on_the_number_of_questions(config):
    rounds = [answers_of(config, [0] * 6, repeat=repeat) for repeat in range(4)]
    measures = measure([answer for answers in rounds for answer in answers])
    figures = [measures.strict_accuracy_interval, measures.mean_score_interval]
    figures += [estimate.interval for estimate in (*measures.pass_at.values(), *measures.majority_at.values())]
    assert len(figures) == 8
    # The upper end is z^2 / (n + z^2) for 6 questions.
    assert figures == [pytest.approx((0, 0.3903), abs=1e-4)] * 8


def test_a_single_problem_has_an_interval_but_no_standard_error(answers):
    measures = measure(answers[:1])
    assert measures.strict_accuracy_error is None
    assert measures.strict_accuracy_interval[0] < 0.5


def test_pass_at_k_and_majority_at_k_are_computed_up_to_the_number_of_repeats(config):
    rounds = [[1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1]]
    measures = measure(
        [answer for repeat, scores in enumerate(rounds) for answer in answers_of(config, scores, repeat=repeat)]
    )
    assert list(measures.pass_at) == list(measures.majority_at) == ["1", "2", "3"]
    assert (
        measures.pass_at["1"].mean
        == measures.majority_at["1"].mean
        == measures.strict_accuracy
        == pytest.approx(9 / 18)
    )
    assert measures.pass_at["3"].mean == pytest.approx(5 / 6)
    # Three of the six problems have at least two right answers out of three.
    assert measures.majority_at["3"].mean == pytest.approx(3 / 6)


def test_greedy_answers_have_only_pass_at_1(answers):
    measures = measure(answers)
    assert measures.pass_at == {"1": Estimate(0.5, measures.strict_accuracy_error, measures.strict_accuracy_interval)}


def test_missing_truncated_and_failed_answers_are_counted(answers):
    right, other, third, fourth = answers[:4]
    cut = dataclasses.replace(other, answer=None, finish_reason="length")
    failed = dataclasses.replace(third, score=0.0, error="exception: ValueError")
    late = dataclasses.replace(fourth, score=0.0, error="timeout")
    measures = measure([right, cut, failed, late])
    assert measures.share_without_answer == measures.share_truncated == 0.25
    assert measures.num_scorer_errors == {"exception": 1, "timeout": 1}
    assert measures.num_timeouts == 1


def test_measures_of_no_answers_are_refused():
    with pytest.raises(ValueError, match="no values"):
        measure([])


def test_refused_requests_are_failed_requests_and_not_wrong_answers(config):
    rounds = [answers_of(config, [1, 0, 0, 1, 1, 0], repeat=repeat) for repeat in range(2)]
    rounds[1][0] = dataclasses.replace(rounds[1][0], score=0.0, answer=None, refused="content filter")
    measures = measure([answer for answers in rounds for answer in answers])
    assert (measures.num_answers, measures.num_refused) == (12, 1)
    assert measures.strict_accuracy == pytest.approx(5 / 11)
    assert measures.share_without_answer == 0
    assert list(measures.pass_at) == ["1", "2"]
    # The problem with one answer left does not count for k = 2.
    assert measures.pass_at["2"].mean == pytest.approx(2 / 5)


def test_measures_of_refused_requests_alone_are_unknown(answers):
    measures = measure([dataclasses.replace(answer, refused="no") for answer in answers])
    assert measures.strict_accuracy is measures.strict_accuracy_interval is measures.mean_score is None
    assert measures.pass_at == {"1": Estimate(None, None, None)}
    assert measures.num_scorer_errors == {}


def test_the_mean_length_is_that_of_the_known_lengths(answers):
    lengths = [None, 4, None, 8, None, None]
    known = [dataclasses.replace(answer, tokens=tokens) for answer, tokens in zip(answers, lengths, strict=True)]
    assert measure(known).mean_tokens == 6
    assert measure(known[:1]).mean_tokens is None
