import inspect
import itertools
import re

import pytest
from reasoning_gym.factory import DATASETS

from rgtrain.problems.scoring import EXECUTING
from rgtrain.problems.scoring.execution import may_run_code

# The modules of these datasets have such a call too, but do not apply it to the answer.
NOT_ON_THE_ANSWER = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
# A reference pattern for formulas. It backtracks, so it is suitable only for short texts.
NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+"
NAME = r"(?<![A-Za-z_])(?:[A-Za-z_]|a?(?:sin|cos|tan|sec|csc|cot)h?|exp|log|ln|sqrt|pi)(?![A-Za-z_])"
FORMULA = re.compile(rf"(?:{NUMBER}|{NAME}|[\s+\-*/^%,=()\[\]|])*")
CALL = re.compile(r"\b(eval|exec|parse_expr|sympify|__import__)\(")


def test_the_executing_datasets_match_the_source_of_their_scorers():
    named = {
        name
        for name, (cls, _) in DATASETS.items()
        if name != "composite" and CALL.search(inspect.getsource(inspect.getmodule(cls)))
    }
    assert named == EXECUTING | NOT_ON_THE_ANSWER


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [
        ("countdown", "24*(58 - 64 + 82)/12"),
        ("countdown", "9**9**9**9"),
        ("puzzle24", "1.5e3 + .5 - 2."),
        ("simple_integration", "x**3/3 - 2*x + C"),
        ("intermediate_integration", "sin(3*x)**2/2 + exp(-x)*log(x) + asin(x) + C"),
        ("polynomial_multiplication", "3*x**2*y - 2*z"),
        ("binary_matrix", "[[0, 1], [1, 0]]"),
        ("spiral_matrix", "1 2 3 4"),
        ("n_queens", "_ _ Q _\nQ _ _ _"),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]"),
        ("string_insertion", "['A', 'B', \"CD\"]"),
        ("chain_sum", "__import__('os')._exit(0)"),
    ],
)
def test_formulas_lists_of_words_and_answers_to_other_datasets_run_no_code(dataset, answer):
    assert not may_run_code(dataset, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "exec('1')",
        "exit()",
        "x.n",
        "x . n",
        "1..real",
        "(1).real",
        "[].append",
        "factorial(10**7)",
        "sinx(1)",
        "xsin(1)",
        "__import__",
        "__",
        "lambda: 0",
        "[a for a in b]",
        "a if b else c",
        "S('exit')",
        "f'{x}'",
        "('a')('b')",
        "{}",
        "a; b",
        "a := b",
        "x = y\nprint",
        "'a' 'b'(c)",
        "ABCD",
        "\uff45xec",
        "\u017fin(1)",
        "@a",
        "'\\x41'",
        "a # b",
    ],
)
@pytest.mark.parametrize("dataset", ["n_queens", "countdown"])
def test_any_other_text_may_run_code(dataset, answer):
    assert may_run_code(dataset, answer)


@pytest.mark.parametrize(
    ("pieces", "longest"),
    [("1.e+x", 6), ((*"1.e-_!x", "sin", "h", "\u0663", "\u00b2"), 4)],
)
def test_only_formulas_run_no_code(pieces, longest):
    texts = ("".join(parts) for length in range(longest + 1) for parts in itertools.product(pieces, repeat=length))
    # Lists of words contain no dots and exclamation marks, so only the formula pattern can match these texts.
    differing = [text for text in texts if may_run_code("countdown", "." + text) == bool(FORMULA.fullmatch("." + text))]
    assert differing == []


# A backtracking pattern takes seconds or much longer on each of these.
@pytest.mark.parametrize("text", ["1" * 40 + "!", "1.5" * 400 + "!", "1e5" * 400 + "#", "1e+1e-" * 200 + "!"])
def test_digits_with_other_text_are_classified_fast(text):
    assert may_run_code("countdown", text)


@pytest.mark.parametrize("tail", [" is the answer", "!", "; x", " because x = 2.", ", I think."])
def test_a_formula_followed_by_prose_is_classified_fast(tail):
    product = "12*x**4*y + 314159265358979323846*x**3 - 27182818284590452353602874713527*x + 1000000000000"
    assert not may_run_code("polynomial_multiplication", product)
    assert may_run_code("polynomial_multiplication", product + tail)
