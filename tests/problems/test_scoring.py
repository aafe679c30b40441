import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, Score, Scorer, build_mixture, dump_entry, load_entry
from rgtrain.problems.mixture import ProblemSource
from rgtrain.problems.scoring import MAX_ANSWER_CHARS

# Where the entry has no answer, its metadata may name a possible one.
POSSIBLE_ANSWERS = ("possible_answer", "example_answer", "example_correct_answer")
# Their scorers execute the answer or can hang on it.
RISKY = {
    *("binary_matrix", "spiral_matrix", "string_insertion", "n_queens", "polynomial_multiplication", "countdown"),
    *("puzzle24", "simple_integration", "intermediate_integration", "coin_flip", "rush_hour", "rubiks_cube"),
    *("propositional_logic", "boxnet", "composite", "arc_agi", "rearc", "knight_swap"),
}


def source(name, **params):
    return ProblemSource(DatasetSpec(name, params=params), seed=0, size=100)


def honest_answer(problem):
    """The right answer, or one that Reasoning Gym calls possible; None where it has neither."""
    found = [problem.entry["answer"], *(problem.entry["metadata"].get(key) for key in POSSIBLE_ANSWERS)]
    answer = next((answer for answer in found if answer is not None), None)
    return json.dumps(answer) if isinstance(answer, dict) else answer


def stable(score):
    return replace(score, seconds=0.0)


def test_honest_answers_score_what_reasoning_gym_gives_them_in_every_dataset(problems):
    scorer = Scorer()
    differing = {}
    for name, (first, second, *_) in problems.items():
        own = reasoning_gym.create_dataset(name, seed=0, size=10)
        for answer in filter(None, (honest_answer(first), honest_answer(second))):
            score, expected = scorer.score(answer, first.entry), own.score_answer(answer, first.entry)
            if (score.accuracy, score.error) != (expected, None):
                differing[name] = (answer, score, expected)
    assert differing == {}


def test_only_two_datasets_have_neither_an_answer_nor_a_possible_one(problems):
    assert {name for name, made in problems.items() if honest_answer(made[0]) is None} == {"boxnet", "rush_hour"}


@pytest.mark.parametrize("answer", [None, "", " ", "\n\t "])
def test_no_answer_and_a_blank_one_score_0_in_every_dataset(answer, problems):
    scorer = Scorer()
    for made in problems.values():
        assert scorer.score(answer, made[0].entry) == Score(0.0)


def test_an_answer_that_is_too_long_scores_0_and_is_named():
    entry = source("chain_sum")[0].entry
    longest = entry["answer"].rjust(MAX_ANSWER_CHARS, "0")
    assert Scorer().score(longest, entry).error is None
    assert Scorer().score(longest + " ", entry) == Score(0.0, error="answer over 20000 characters")


@pytest.mark.parametrize(
    ("name", "answer", "error"),
    [
        ("prime_factorization", "two times three", "ValueError"),
        ("game_of_life", "{}", "KeyError"),
        ("coin_flip", "1e309", "OverflowError"),
        ("complex_arithmetic", "1.7e308+1.7e308j", "OverflowError"),
        ("propositional_logic", "¬" * 1100 + "P", "RecursionError"),
        ("n_queens", "(_ for _ in ()).throw(SystemExit)", "SystemExit"),
    ],
)
def test_an_exception_of_the_scorer_is_that_answers_own_error(name, answer, error):
    honest, hostile, again = Scorer().score_many(
        (text, source(name)[0].entry) for text in ("no answer", answer, "no answer")
    )
    assert stable(hostile) == Score(0.0, error=f"exception: {error}")
    assert stable(honest) == stable(again)


def test_scores_come_in_input_order():
    gcd, lcm = source("gcd"), source("lcm")
    pairs = [(made[i].entry["answer"] if i % 3 else None, made[i].entry) for i in range(9) for made in (gcd, lcm)]
    scores = Scorer().score_many(iter(pairs))
    assert [score.accuracy for score in scores] == [float(i % 3 > 0) for i in range(9) for _ in range(2)]


def test_a_scorer_is_a_context_manager():
    with Scorer() as scorer:
        assert scorer.score_many([]) == []


def test_threads_share_one_scorer(problems):
    pairs = [(honest_answer(made[0]), made[0].entry) for name, made in problems.items() if name not in RISKY] * 4
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda pair: Scorer().score(*pair), pairs))
    assert list(map(stable, together)) == list(map(stable, Scorer().score_many(pairs)))


def one_decimal_place():
    problem = source("decimal_arithmetic", min_num_decimal_places=1, max_num_decimal_places=1, precision=6)[0]
    return problem, str(float(problem.entry["answer"]) + 0.05)


def numbers_too_small():
    return source("puzzle24", min_value=5)[0], "4*3*2*1"


def eight_days_for_nine():
    made = source("time_intervals", task_types=["date"], max_date_difference_days=10)[0]
    days = int(made.entry["answer"].split()[0])
    return made, f"{days + 1} days"


@pytest.mark.parametrize(
    ("make", "accuracy", "by_default"),
    [(one_decimal_place, 1.0, 0.0), (numbers_too_small, 0.01, 1.0), (eight_days_for_nine, 0.9, 0.99)],
)
def test_the_datasets_parameters_travel_with_the_entry(make, accuracy, by_default):
    problem, answer = make()
    entry = load_entry(dump_entry(problem.entry))
    without = entry | {"metadata": entry["metadata"] | {"source_params": {}}}
    assert Scorer().score(answer, entry).accuracy == pytest.approx(accuracy)
    assert Scorer().score(answer, without).accuracy == pytest.approx(by_default)


def test_parameters_with_lists_and_tuples_travel_with_the_entry():
    for operators in (["+", "-"], ("+", "-")):
        entry = load_entry(dump_entry(source("countdown", operators=operators)[0].entry))
        assert entry["metadata"]["source_params"] == {"operators": operators}
        assert Scorer().score(entry["answer"], entry).accuracy == 1.0


def test_validation_is_scored_against_its_own_entry():
    spec = DatasetSpec("spell_backward", params={"min_word_len": 6})
    first, second = (build_mixture([spec], seed=seed, size=1)[0] for seed in (0, 1))
    assert first.index == second.index
    assert Scorer().score(second.entry["answer"], second.entry).accuracy == 1.0
    assert Scorer().score(second.entry["answer"], first.entry).accuracy < 1.0


def test_scoring_does_not_change_the_problems_that_are_made_afterwards():
    made = source("codeio")
    before = [made[index].question for index in range(5)]
    other = source("codeio", difficulty=6)[0]
    Scorer().score(other.entry["answer"], other.entry)
    assert [made[index].question for index in range(5)] == before


@pytest.mark.parametrize("answer", ["1", None, ""])
@pytest.mark.parametrize(
    "entry",
    [
        {"question": "?", "answer": "1"},
        {"question": "?", "answer": "1", "metadata": {}},
        {"question": "?", "answer": "1", "metadata": {"source_dataset": "no_such_dataset"}},
    ],
)
def test_an_entry_that_names_no_known_dataset_raises(entry, answer):
    with pytest.raises(KeyError):
        Scorer().score(answer, entry)


def test_an_entry_whose_parameters_its_dataset_refuses_raises():
    metadata = {"source_dataset": "chain_sum", "source_params": {"min_terms": -1}}
    with pytest.raises(ConfigError, match="dataset 'chain_sum' refuses"):
        Scorer().score("1", {"question": "?", "answer": "1", "metadata": metadata})


@settings(max_examples=500)
@given(name=st.sampled_from(sorted(set(DATASETS) - RISKY)), answer=st.text(max_size=60))
def test_any_text_scores_between_0_and_1_or_names_its_error(problems, name, answer):
    score = Scorer().score(answer, problems[name][0].entry)
    assert 0.0 <= score.accuracy <= 1.0
    assert score.error is None or score.accuracy == 0.0
