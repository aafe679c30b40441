"""Corrected verifiers pay for right answers in every usual form, and pass the audit that refuses the originals."""

import dataclasses
import statistics

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, HeldOut, Scorer, dump_entry
from rgtrain.problems.mixture import Problem, ProblemSource
from rgtrain.problems.scoring import EXECUTING
from rgtrain.problems.sound_datasets import SOUND_PREFIX, generators_of_same_problems, original_of
from rgtrain.problems.soundness import UNSOUND, check_sound, committed_audit, is_unsound

NAMES = sorted(name.removeprefix(SOUND_PREFIX) for name in DATASETS if name.startswith(SOUND_PREFIX))
NUM_PROBLEMS = 6
# Answers that earn on the original without a look at the question.
PAID_FOR_NOTHING = {
    "coin_flip": ("0", "0.0"),
    "complex_arithmetic": ("nan", "nan+nanj"),
    "game_of_life": (str([[0] * 10] * 10),),
    "game_of_life_halting": ("I don't know.", "0"),
    "puzzle24": ("6*4*1*1",),
}
WRONG = {
    "coin_flip": ("1/0", "0/0", "1e999", "9" * 101, "nan", "inf", "1/2/2", "", "\u0661"),
    "complex_arithmetic": (
        *("1+2+3i", "1i+2i", "(1+2i)+(3+4i)", "(", ")", "+", "=", "e5", "1e", ""),
        *("inf", "-inf", "1e308+1e308j", "1.7e308+1.7e308j", "(" * 99, "x", "j" * 99, "9" * 101),
    ),
    "game_of_life": ("[[0]]", "[]", "{}", "NaN", "[" * 300, "null", "1e999", "]", "][", "]["),
    "game_of_life_halting": ("", ".", "true false", "TrueTrue", "1", "bool"),
    "puzzle24": (
        "24",
        "1/0",
        "exit()",
        "(" * 90,
        "9**9**9",
        "\0",
        "True*24",
        "'a'*24",
        "24 == 24",
        "",
        "()",
        "x",
        "[24]",
    ),
}


def variants(name: str, entry: dict) -> list[str]:
    """Return the right answer as models write it."""
    answer = entry["answer"]
    forms = [answer, f"  {answer}\n"]
    match name:
        case "coin_flip":
            ratio = entry["metadata"]["rational"]
            fraction = f"{ratio['numerator']}/{ratio['denominator']}"
            forms += [
                fraction,
                fraction.replace("/", " / "),
                f"{float(answer):.4e}",
                f"+{answer}",
                f"P = {answer}",
                f"{fraction} \u2248 {answer}",
            ]
            forms += [
                f"{100 * float(answer)}%",
                f"${100 * float(answer)}\\%$",
                f"$\\frac{{{fraction.replace('/', '}{')}}}$",
            ]
        case "complex_arithmetic":
            forms += [answer.replace(" ", ""), answer.replace("i", "j"), f"({answer})", answer.replace("-", "\u2212")]
            real, imaginary = (int(part) for part in entry["metadata"]["result"])
            forms += [f"{imaginary}i{real:+d}", f"{real} + {imaginary}*i", f"z = {real}{imaginary:+d}i"]
        case "game_of_life":
            forms += [answer.replace(",", ", "), answer.replace("],", "],\n "), f"```json\n{answer}\n```"]
        case "game_of_life_halting":
            forms += [answer.lower(), answer.upper(), f"{answer}."]
        case "puzzle24":
            forms += [answer.replace(" ", ""), f"({answer})", answer.replace("*", " \u00d7 ").replace("-", "\u2212")]
            forms += [answer.replace("*", " x "), answer.replace("(", "[").replace(")", "]")]
            forms += [answer.replace("*", r"\times ").replace("/", r"\div ")]
    markup = ["{}.", "$ {} $", "**{}**", "`{}`", '"{}"', r"\boxed{{{}}}", r"$\boxed{{\text{{{}}}}}$.", r"\( {} \)"]
    return forms + [form.format(answer) for form in markup if name != "game_of_life"]


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    return {
        name: [source[i] for i in range(NUM_PROBLEMS)] for name in NAMES for source in [source_of(SOUND_PREFIX + name)]
    }


def source_of(name: str) -> ProblemSource:
    return ProblemSource(DatasetSpec(name), seed=40, size=NUM_PROBLEMS)


@pytest.fixture(scope="module")
def scorer():
    with Scorer(num_workers=1) as scorer:
        yield scorer


def test_the_corrected_datasets_are_those_that_the_tests_know():
    assert NAMES == sorted(PAID_FOR_NOTHING) == sorted(WRONG)


@pytest.mark.parametrize("name", NAMES)
def test_the_problems_are_those_of_the_original(name, problems):
    original = source_of(name)
    for index in (0, 5):
        entry = dict(problems[name][index].entry)
        entry["metadata"] = entry["metadata"] | {"source_dataset": name}
        assert dump_entry(entry) == dump_entry(dict(original[index].entry))


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_scores_1_in_every_form(name, problems, scorer):
    pairs = [(form, problem.entry) for problem in problems[name] for form in variants(name, problem.entry)]
    scored = scorer.score_many(pairs)
    assert [pair[0] for pair, score in zip(pairs, scored, strict=True) if score.accuracy != 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_that_earns_on_the_original_earns_less_than_one_half(name, problems, scorer):
    for answer in PAID_FOR_NOTHING[name]:
        paid = {}
        for prefix in ("", SOUND_PREFIX):
            entries = [
                {**problem.entry, "metadata": {**problem.entry["metadata"], "source_dataset": prefix + name}}
                for problem in problems[name]
            ]
            paid[prefix] = statistics.fmean(score.accuracy for score in scorer.score_many((answer, e) for e in entries))
        assert paid[SOUND_PREFIX] < UNSOUND <= paid[""] + 0.1, answer


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_answer_scores_0_without_an_error(name, problems, scorer):
    entry = problems[name][0].entry
    for answer in WRONG[name]:
        score = scorer.score(answer, entry)
        assert (score.accuracy, score.error) == (0, None), answer


def test_puzzle24_asks_for_the_numbers_of_the_problem():
    dataset = reasoning_gym.create_dataset("sound/puzzle24", seed=0, size=1)
    entry = {"metadata": {"numbers": [3, 8, 1, 1]}}
    assert [
        dataset.score_answer(answer, entry) for answer in ("3*8*1*1", "8*3/1/1", "-(-3)*8*1*1", "3*8", "3*8*1")
    ] == [*(1, 1, 1, 0, 0)]


def test_coin_flip_compares_small_probabilities_by_their_ratio():
    dataset = reasoning_gym.create_dataset("sound/coin_flip", seed=0, size=1)
    entry = {"metadata": {"rational": {"numerator": 1, "denominator": 2**15}}}
    scores = [dataset.score_answer(answer, entry) for answer in ("1/32768", "3.05e-5", "0.0000305", "0", "0.0001")]
    assert scores == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_corrected_dataset_passes_the_audit_that_refuses_the_original(name):
    audited = committed_audit().datasets
    found = audited[SOUND_PREFIX + name]
    assert is_unsound(audited[name])
    assert not is_unsound(found)
    assert found.num_oracles_right == found.num_oracles == found.num_items >= 50
    assert (found.errors, found.hostile_errors, found.num_junk_paid) == ({}, {}, 0)
    assert check_sound([SOUND_PREFIX + name], allowed=[]) == [] or name == "game_of_life_halting"
    with pytest.raises(ConfigError, match=f"'{name}' pays without a solution: .*; use sound/{name}, which"):
        check_sound([name], allowed=[])


def test_two_answers_pass_the_audit_if_a_constant_earns_only_when_it_is_right():
    found = committed_audit().datasets["sound/game_of_life_halting"]
    assert found.best_constant_score == found.best_constant_share_right >= UNSOUND
    assert is_unsound(dataclasses.replace(found, best_constant_share_right=0.4))
    assert is_unsound(dataclasses.replace(found, num_junk_paid=1))
    assert is_unsound(dataclasses.replace(found, best_constant_score=0.6, best_constant_share_right=0.6))


def test_no_corrected_verifier_runs_the_answer():
    assert not EXECUTING & set(DATASETS) & {SOUND_PREFIX + name for name in NAMES}


def test_a_problem_of_the_original_is_held_out_from_the_corrected_dataset(problems):
    held_out = HeldOut([source_of("coin_flip")[0]])
    assert problems["coin_flip"][0] in held_out
    assert generators_of_same_problems("coin_flip") == generators_of_same_problems("sound/coin_flip")
    assert generators_of_same_problems("chain_sum") == ("chain_sum",)
    assert original_of("sound/coin_flip") == "coin_flip"
