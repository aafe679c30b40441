"""Verdicts on answers to the subtasks of Big-Bench Hard."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtrain.evaluation.big_bench_hard import SUBTASKS, asked, chosen_verdict, is_right, is_same_list

# A problem of each kind of answer, as in the data set.
PROBLEMS = {
    "navigate": ("Do you return to the starting point?\nOptions:\n- Yes\n- No", "No"),
    "formal_fallacies": ("Is the argument valid or invalid?\nOptions:\n- valid \n- invalid", "invalid"),
    "boolean_expressions": ("not ( True ) and ( True ) is", "False"),
    "object_counting": ("How many fruits do I have?", "8"),
    "multistep_arithmetic_two": ("((-5 + 9 * -4 - 0) * (4 + -7 + 0 * -5)) =", "-50"),
    "dyck_languages": ("Complete the rest of the sequence. Input: [ { (", ") } ]"),
    "word_sorting": ("Sort alphabetically: List: r&d can't barn", "barn can't r&d"),
    "snarks": ("Which statement is sarcastic?\nOptions:\n(A) Great weather\n(B) Great storm", "(B)"),
    # Options of some problems were split at commas.
    "ruin_names": (
        "Which is a humorous edit of 'earth, wind, & fire'?\nOptions:\n(A) dearth\n(B) wind",
        "dearth, wind",
    ),
}


def verdict(subtask: str, answer: str) -> bool:
    text, target = PROBLEMS[subtask]
    return is_right({"subtask": subtask, "input": text, "target": target}, answer)


@pytest.mark.parametrize("subtask", PROBLEMS)
@pytest.mark.parametrize(
    "form",
    ["{}", " {}. ", "**{}**", "`{}`", "The answer is {}.", "Answer: {}", "So the answer is\n{}", "\\boxed{{{}}}"],
)
def test_the_target_is_right_in_every_form(subtask, form):
    assert verdict(subtask, form.format(PROBLEMS[subtask][1]))


@pytest.mark.parametrize(
    ("subtask", "answer"),
    [
        ("navigate", "no"),
        ("navigate", "NO"),
        ("navigate", "No, because you end up 3 steps to the left."),
        ("navigate", "No, there is yes-man talk"),
        ("navigate", "You do not return, so: no."),
        ("navigate", "I first thought the answer is yes, but the answer is no"),
        ("navigate", "\\boxed{\\text{No}}"),
        ("formal_fallacies", "The argument is invalid."),
        ("formal_fallacies", "deductively invalid"),
        ("formal_fallacies", "It is not valid, it is invalid."),
        ("boolean_expressions", "not True and True = False"),
        ("object_counting", "8 fruits"),
        ("object_counting", "Eight."),
        ("object_counting", "The answer is eight"),
        ("object_counting", "3 + 5 = 8"),
        ("multistep_arithmetic_two", "\N{MINUS SIGN}50"),
        ("dyck_languages", ")}]"),
        ("dyck_languages", "[ { ( ) } ]"),
        ("word_sorting", "Barn, Can\u2019t, R&D"),
        ("word_sorting", "1. barn\n2. can't\n3. r&d"),
        ("word_sorting", "- barn\n- can't\n- r&d"),
        ("word_sorting", '["barn", "can\'t", "r&d"]'),
        ("word_sorting", "barn < can't < r&d"),
        ("word_sorting", "The sorted list: barn can't r&d"),
        ("snarks", "B"),
        ("snarks", "(B) Great storm"),
        ("snarks", "option B"),
    ],
)
def test_a_right_answer_may_be_written_in_several_ways(subtask, answer):
    assert verdict(subtask, answer)


@pytest.mark.parametrize(
    ("subtask", "answer"),
    [
        *((subtask, "") for subtask in PROBLEMS),
        *((subtask, "...") for subtask in PROBLEMS),
        ("navigate", "Yes"),
        ("navigate", "yes or no"),
        ("navigate", "No / Yes"),
        ("navigate", "No. Yes."),
        ("navigate", "no doubt"),
        ("navigate", "There is no way to tell"),
        ("navigate", "Nowhere"),
        ("navigate", "False"),
        ("navigate", "The answer is no. Wait, the answer is yes."),
        ("formal_fallacies", "valid"),
        ("formal_fallacies", "not invalid"),
        ("formal_fallacies", "not valid"),
        ("formal_fallacies", "valid or invalid"),
        ("boolean_expressions", "True or False"),
        ("boolean_expressions", "0"),
        ("object_counting", "7 or 8"),
        ("object_counting", "seven or eight"),
        ("object_counting", "eighty"),
        ("object_counting", "3 + 5"),
        ("object_counting", "-8"),
        ("multistep_arithmetic_two", "50"),
        # Scorers that remove punctuation take every sequence of brackets as right.
        ("dyck_languages", "] } )"),
        ("dyck_languages", ") }"),
        ("dyck_languages", ") } ] ]"),
        ("dyck_languages", "( { ["),
        ("dyck_languages", "[ { ( ) }"),
        # Scorers that compare sets take every order and number of the words as right.
        ("word_sorting", "r&d can't barn"),
        ("word_sorting", "barn barn can't r&d"),
        ("word_sorting", "barn can't"),
        ("word_sorting", "barn can't r&d zebra"),
        ("word_sorting", "barn cant rd"),
        ("snarks", "A"),
        ("snarks", "(A) or (B)"),
        ("snarks", "Great storm"),
        ("snarks", "(C)"),
        ("ruin_names", "(A)"),
        ("ruin_names", "wind"),
    ],
)
def test_other_answers_are_wrong(subtask, answer):
    assert not verdict(subtask, answer)


def test_a_single_option_is_no_fault():
    problem = {"subtask": "snarks", "input": "Which is sarcastic?\nOptions:\n(A) Easy", "target": "(A)"}
    assert is_right(problem, "(A)") and not is_right(problem, "(B)")


def test_there_are_27_subtasks_and_each_asks_for_its_form_of_answer():
    assert len(SUBTASKS) == 27
    forms = {asked({"subtask": one, "input": "?", "target": "(A)"}).splitlines()[-1] for one in SUBTASKS}
    assert len(forms) == 4 + 4  # four pairs of verdicts, a number, brackets, words and a letter
    named = asked({"subtask": "ruin_names", "input": "?", "target": "dearth, wind"})
    assert named == "?\n\nAnswer with the name."


def test_an_unknown_subtask_is_an_error():
    with pytest.raises(KeyError, match="sudoku"):
        is_right({"subtask": "sudoku", "input": "", "target": "1"}, "1")


PIECES = [
    "yes",
    "no",
    "not ",
    "answer is ",
    "or",
    "/",
    ".",
    " ",
    "\n",
    "(",
    "B",
    ")",
    "barn",
    "\\boxed{",
    "}",
    "**",
    ":",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=12).map("".join))
def test_any_text_has_a_verdict(text):
    assert chosen_verdict(text, ("yes", "no")) in ("yes", "no", None)
    assert all(isinstance(verdict(subtask, text), bool) for subtask in PROBLEMS)


@pytest.mark.parametrize(
    "unit", ["no ", "not ", "answer is ", "yes or no, ", "( ", "a:", "a.", "\\boxed{", "*", " ", "'"]
)
def test_ten_thousand_characters_take_a_fraction_of_a_second(unit):
    text = unit * (10_000 // len(unit))
    started = time.process_time()
    chosen_verdict(text, ("yes", "no"))
    is_same_list(text, ["barn"])
    verdict("dyck_languages", text)
    assert time.process_time() - started < 1
