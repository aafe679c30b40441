"""Verifiers of short answers accept the usual forms of a right answer and nothing else."""

import pytest

from rgtrain.errors import ConfigError
from rgtrain.problems.scoring.judges import allow_verifier, find_judge, is_known_judge
from rgtrain.problems.scoring.verifiers import VERIFIERS

RIGHT = [
    ("exact", "New  York\n", "New York"),
    ("ignore_case", " paris. ", "Paris"),
    ("numeric", "1,234.50", "1234.5"),
    ("numeric", "$3", "3.0"),
    ("numeric", "50%", "0.5"),
    ("numeric", "1/3", "0.33333333"),
    ("numeric", "-1.5e3", "-1500"),
    ("numeric", "\N{MINUS SIGN}7.", "-7"),
    ("numeric", "-0", "0"),
    ("choice", "(b)", "B"),
    ("choice", "B. Paris", "b"),
    ("choice", "**C**", "C"),
    ("choice", "Option D", "D"),
    ("expression", "x*(x+1)", "x^2 + x"),
    ("expression", "2x", "x + x"),
    ("expression", "sin(x)^2 + cos(x)^2", "1"),
    ("expression", "S + 1", "1 + S"),
]
WRONG = [
    ("exact", "new york", "New York"),
    ("exact", "", "New York"),
    ("ignore_case", "London", "Paris"),
    ("numeric", "12,34", "1234"),
    ("numeric", "1/0", "0"),
    ("numeric", "nan", "0"),
    ("numeric", "inf", "1"),
    ("numeric", "1e999", "1"),
    ("numeric", "9" * 1000, "9"),
    ("numeric", "three", "3"),
    ("numeric", "3 or 4", "3"),
    ("choice", "Because", "B"),
    ("choice", "I think B", "I"),
    ("choice", "", "B"),
    ("expression", "x**2", "x"),
    ("expression", "exec('1')", "1"),
    ("expression", "x.n", "x"),
    ("expression", "[].append", "1"),
    ("expression", "(((", "1"),
    ("expression", "x = 1", "1"),
    ("expression", "\x00", "1"),
]


@pytest.mark.parametrize(
    ("name", "answer", "expected", "score"), [*((*case, 1.0) for case in RIGHT), *((*case, 0.0) for case in WRONG)]
)
def test_a_verifier_compares_answers(name, answer, expected, score):
    assert VERIFIERS[name].judge(answer, {"answer": expected}) == score


@pytest.mark.parametrize(
    ("name", "answer"), [("numeric", "three"), ("choice", "Paris"), ("expression", "sum of x"), ("ignore_case", ".")]
)
def test_a_verifier_refuses_an_expected_answer_that_it_cannot_compare(name, answer):
    assert not VERIFIERS[name].allows(answer)


def test_the_scorer_judges_with_verifiers_and_with_own_functions_that_a_configuration_names(scorer):
    def entry(dataset: str, answer: str) -> dict:
        return {"question": "?", "answer": answer, "metadata": {"source_dataset": dataset, "source_params": {}}}

    own = "pkg://rgtrain.problems.scoring.verifiers.exact"
    with pytest.raises(KeyError, match=own):
        scorer.score("b", entry(own, "b"))
    assert not is_known_judge(own)
    assert allow_verifier(own, where="here") == own
    pairs = [
        ("7.0", entry("verifier:numeric", "7")),
        ("x+x", entry("verifier:expression", "2*x")),
        (" b ", entry(own, "b")),
    ]
    assert [score.accuracy for score in scorer.score_many(pairs)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numerc", "here has verifier 'numerc'; did you mean 'numeric'"),
        (None, "here has verifier None"),
        ("composite", "here has verifier 'composite'"),
        ("pkg://no_such.module", "cannot be imported"),
        ("pkg://math.pi", "is a float; name a function"),
    ],
)
def test_an_unknown_verifier_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        allow_verifier(name, where="here")


def test_a_dataset_that_the_process_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="does not know dataset 'unknown_here'; list its package in plugins"):
        find_judge("unknown_here", {})


def test_a_dataset_of_reasoning_gym_is_a_verifier():
    assert allow_verifier("chain_sum", where="here") == "chain_sum"
    assert find_judge("chain_sum", {})("7.0", {"answer": "7"}) == 1
