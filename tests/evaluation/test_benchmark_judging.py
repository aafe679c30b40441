"""The option, number or expression that an answer to an outside benchmark names."""

import time
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rgtrain.evaluation.benchmark_judging import chosen_letter, plain_quantity, stated_expression, stated_number
from rgtrain.paths import PROJECT_ROOT

TABLE = yaml.safe_load((PROJECT_ROOT / "tests/evaluation/benchmark_verdicts.yaml").read_text(encoding="utf-8"))
# The right option of the table's question is C, which is the only prime number.
OPTIONS = ["4", "6", "7", "9", "10", "E. coli", "B cells", "Vitamin C", "12", "15"]
PIECES = ["C", "A", "I", "18", "1,8", "½", "²", "answer is ", "option ", "\\boxed{", "\\frac", "{", "}", "(", ")", "**"]
PIECES += [
    " or ",
    " and ",
    "=",
    "-",
    "+",
    "/",
    "^",
    ".",
    ",",
    " ",
    "\n",
    "e9",
    "$",
    "is ",
    "e3",
    "k",
    "a",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "\\",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=12).map("".join)


@pytest.mark.parametrize("row", TABLE["letters"], ids=lambda row: ascii(row["answer"]))
def test_an_answer_names_the_option_of_the_table(row):
    assert chosen_letter(row["answer"], OPTIONS) == row["verdict"], row["reason"]


@pytest.mark.parametrize("row", TABLE["numbers"], ids=lambda row: ascii(row["answer"]))
def test_an_answer_states_the_number_of_the_table(row):
    assert stated_number(row["answer"]) == (row["verdict"] and Fraction(row["verdict"])), row["reason"]


def test_the_table_has_enough_rows_of_both_verdicts_and_none_twice():
    for rows in TABLE.values():
        assert len({row["answer"] for row in rows}) == len(rows) >= 60
        assert 20 <= sum(row["verdict"] is None for row in rows) <= len(rows) - 20


@pytest.mark.parametrize("letter", "ABCDEFGHIJ")
def test_every_letter_is_read_alike(letter):
    forms = ["{}", "({})", "**{}**", "\\boxed{{{}}}", "Option {}", "The answer is {}.", "{}: because", "{}. 7"]
    assert {chosen_letter(form.format(letter), OPTIONS) for form in forms} == {letter}
    assert {chosen_letter(form.format(letter), OPTIONS[: ord(letter) - ord("A")]) for form in forms} == {None}


@pytest.mark.parametrize(
    ("answer", "quantity"),
    [
        ("18 dollars", 18),
        ("18\\text{ cm}", 18),
        ("18\\%", 18),
        ("18^\\circ", 18),
        ("$\\boxed{1{,}800}$", 1800),
        ("The answer is $18$.", 18),
        ("½", Fraction(1, 2)),
        ("18x", None),
        ("x + 18", None),
        ("x^{18}", None),
        ("18^2", None),
        ("18\\pi", None),
        ("18 pi", None),
        ("(1, 2)", None),
        ("18 or 19", None),
        ("-18", -18),
        ("", None),
    ],
)
def test_a_quantity_is_one_number_with_words_at_most(answer, quantity):
    assert plain_quantity(answer) == quantity


@pytest.mark.parametrize(
    ("answer", "expression"),
    [
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("so \\[ \\boxed{\\frac{1}{2}} \\]", "\\frac{1}{2}"),
        ("\\boxed{1} or \\boxed{2}", "2"),
        ("**The answer is: $x^2$.**", "$x^2$"),
        ("The answer is", "The answer is"),
        ("\\boxed{1", "\\boxed{1"),
    ],
)
def test_an_expression_is_the_last_box_or_the_text_after_a_statement(answer, expression):
    assert stated_expression(answer) == expression


@given(texts)
def test_any_text_names_an_option_or_none_and_a_number_or_none(text):
    assert chosen_letter(text, OPTIONS) in {None, *"ABCDEFGHIJ"}
    assert isinstance(stated_number(text), Fraction | None)
    assert isinstance(plain_quantity(text), Fraction | None)
    assert isinstance(stated_expression(text), str)


@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=1000))
def test_a_fraction_is_read_back(value):
    assert stated_number(f"The answer is {value} units") == value
    assert stated_number(f"\\boxed{{{value}}}") == plain_quantity(f"${value}$") == value


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "123 ",
            "answer is ",
            "answer is C 7 ",
            "option ",
            "\nA) ",
            "A or ",
            "\n",
            "\\boxed{",
            "\\frac{1",
            "=1",
            "1*10^",
        ),
        *("^(", "1,", "( 1", "1 or ", "²", "so ", "1 hundred ", "9", "{", "'", " "),
    ],
)
def test_ten_thousand_characters_take_a_fraction_of_a_second(unit):
    text = unit * (10_000 // len(unit))
    started = time.process_time()
    chosen_letter(text, OPTIONS)
    stated_number(text)
    plain_quantity(text)
    stated_expression(text)
    assert time.process_time() - started < 1
