import json

import pytest
from support.small_spaces import ONE_DIGIT

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, HeldOut, TrainingProblems, build_mixture
from rgtrain.problems.heldout import draw_distinct, survey_spaces
from rgtrain.problems.mixture import Split

SMALL = DatasetSpec("chain_sum", params=ONE_DIGIT)
LARGE = DatasetSpec("spell_backward", params={"min_word_len": 5})
NUM_SMALL = 200


def mixture(*specs, size, split=Split.TRAIN):
    return build_mixture(specs, seed=0, size=size, split=split)


def held_out_of_small_space(size=80):
    return HeldOut(mixture(SMALL, size=size, split=Split.VALIDATION))


def test_training_never_draws_a_held_out_problem():
    held_out = held_out_of_small_space()
    training = TrainingProblems(mixture(SMALL, size=500), held_out=held_out)
    assert len(held_out) > 50
    assert not any(draw.problem in held_out for draw in training)


def test_held_out_problems_are_compared_by_question_not_seed():
    [problem] = mixture(SMALL, size=1)
    twins = [p for p in mixture(SMALL, size=3000, split=Split.EXAMPLES) if p.question == problem.question]
    assert twins
    assert all(twin in HeldOut([problem]) for twin in twins)


def test_a_draw_counts_rejected_held_out_candidates():
    held_out = held_out_of_small_space()
    drawn_from = mixture(SMALL, size=300)
    for index, draw in enumerate(TrainingProblems(drawn_from, held_out=held_out)):
        passed_over = [drawn_from.draw(index, attempt=attempt) for attempt in range(draw.num_held_out)]
        assert all(problem in held_out for problem in passed_over)
        assert draw.problem == drawn_from.draw(index, attempt=draw.num_held_out)


def test_problems_that_are_too_long_are_replaced_and_counted():
    drawn_from = mixture(LARGE, size=200)
    limit = sorted(len(problem.question) for problem in drawn_from)[100]
    draws = list(TrainingProblems(drawn_from, held_out=HeldOut(), fits=lambda problem: len(problem.question) <= limit))
    assert [draw.num_too_long > 0 for draw in draws] == [len(problem.question) > limit for problem in drawn_from]
    assert any(draw.num_too_long for draw in draws)
    assert all(len(draw.problem.question) <= limit for draw in draws)


def test_a_usable_problem_is_not_replaced():
    drawn_from = mixture(LARGE, size=50)
    draws = list(TrainingProblems(drawn_from, held_out=HeldOut()))
    assert [draw.problem for draw in draws] == list(drawn_from)
    assert {(draw.num_held_out, draw.num_too_long) for draw in draws} == {(0, 0)}


def test_replacements_are_the_same_in_another_process(in_another_process):
    code = f"""
import json
from rgtrain.problems import DatasetSpec, HeldOut, TrainingProblems, build_mixture
from rgtrain.problems.mixture import Split
spec = DatasetSpec("chain_sum", params={ONE_DIGIT})
held_out = HeldOut(build_mixture([spec], seed=0, size=80, split=Split.VALIDATION))
training = TrainingProblems(build_mixture([spec], seed=0, size=300), held_out=held_out)
draws = [training.draw(index) for index in reversed(range(300))]
print(json.dumps([[draw.problem.question, draw.num_held_out] for draw in reversed(draws)]))
"""
    training = TrainingProblems(mixture(SMALL, size=300), held_out=held_out_of_small_space())
    here = [[draw.problem.question, draw.num_held_out] for draw in training]
    assert json.loads(in_another_process("-c", code)) == here
    assert any(num_held_out for _, num_held_out in here)


def test_a_replacement_has_the_same_dataset():
    drawn_from = mixture(SMALL, LARGE, size=200)
    training = TrainingProblems(drawn_from, held_out=held_out_of_small_space())
    assert [draw.problem.dataset for draw in training] == [problem.dataset for problem in drawn_from]


def test_training_has_the_size_of_its_mixture():
    training = TrainingProblems(mixture(LARGE, size=5), held_out=HeldOut())
    assert len(training) == len(list(training)) == 5
    for index in (5, -1):
        with pytest.raises(IndexError):
            training[index]


def test_a_dataset_without_usable_problems_is_an_error():
    everything = HeldOut(mixture(SMALL, size=4000, split=Split.VALIDATION))
    assert len(everything) == NUM_SMALL
    training = TrainingProblems(mixture(SMALL, size=5), held_out=everything)
    with pytest.raises(ConfigError, match=r"'chain_sum' gave no usable .* in 200 tries: 200 were held out"):
        training.draw(0)


def test_a_dataset_with_only_long_prompts_is_an_error():
    training = TrainingProblems(mixture(LARGE, size=5), held_out=HeldOut(), fits=lambda problem: False)
    with pytest.raises(ConfigError, match=r"'spell_backward' .* 0 were held out .* 200 have prompts over data"):
        training.draw(0)


def test_distinct_problems_are_neither_repeated_nor_reserved():
    reserved = list(mixture(SMALL, size=40, split=Split.EXAMPLES))
    drawn = draw_distinct(mixture(SMALL, size=100, split=Split.VALIDATION), reserved=reserved)
    assert len({problem.fingerprint for problem in drawn}) == 100
    assert not {problem.fingerprint for problem in drawn} & {problem.fingerprint for problem in reserved}


def test_too_few_distinct_problems_are_an_error():
    with pytest.raises(ConfigError, match="'chain_sum' gave no usable"):
        draw_distinct(mixture(SMALL, size=NUM_SMALL + 1, split=Split.VALIDATION))


def test_a_survey_distinguishes_small_and_large_spaces():
    reports = {report.dataset: report for report in survey_spaces(mixture(SMALL, LARGE, size=1000), HeldOut())}
    assert reports["chain_sum"].is_small
    assert not reports["spell_backward"].is_small
    assert sum(report.num_sampled for report in reports.values()) == 500


def test_a_survey_counts_distinct_and_held_out_problems():
    drawn_from = mixture(SMALL, size=300)
    held_out = held_out_of_small_space()
    [report] = survey_spaces(drawn_from, held_out, num_sampled=400)
    questions = [problem.question for problem in drawn_from]
    assert (report.num_sampled, report.num_distinct) == (300, len(set(questions)))
    assert report.num_held_out == sum(problem in held_out for problem in drawn_from)
    assert str(report) == (
        f"chain_sum: 300 sampled, {report.num_distinct} distinct, {report.num_held_out} held out; "
        f"at least {report.num_left} problems left to train on, as found in a second"
    )


def test_a_survey_counts_the_problems_that_are_left_in_a_small_space():
    held_out = held_out_of_small_space()
    [report] = survey_spaces(mixture(SMALL, size=3000), held_out, num_sampled=100)
    assert report.is_small
    assert (report.num_left, report.is_complete) == (NUM_SMALL - len(held_out), True)
    assert f"; about {report.num_left} problems left to train on" in str(report)


def test_a_space_that_is_mostly_held_out_is_small():
    drawn_from = mixture(LARGE, size=100)
    [report] = survey_spaces(drawn_from, HeldOut(drawn_from))
    assert report.is_small
    assert report.num_left == 0
