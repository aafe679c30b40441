import inspect
import re

import pytest
from reasoning_gym.factory import DATASETS

from rgtrain.problems.scoring import EXECUTING
from rgtrain.problems.scoring.execution import may_run_code

# Their modules have such a call too, but not on the answer: they make their problems with it, or parse by themselves.
NOT_ON_THE_ANSWER = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
CALL = re.compile(r"\b(eval|exec|parse_expr|sympify|__import__)\(")


def test_the_executing_datasets_are_those_whose_source_says_so():
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
def test_a_formula_a_list_of_words_and_any_text_to_another_dataset_run_no_code(dataset, answer):
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
def test_whatever_names_more_than_that_may_run_code(dataset, answer):
    assert may_run_code(dataset, answer)
