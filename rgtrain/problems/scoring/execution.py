"""Decide which answers a scorer would run as code."""

import re
from functools import cache
from typing import Any

from reasoning_gym.factory import DATASETS

from rgtrain.problems.plugins import PLUGIN_PREFIX, load_plugin

# Their scorers have been reviewed for calls such as eval.
_REVIEWED_PACKAGES = ("reasoning_gym", "rgtrain")
# The scorers of these datasets pass text of the answer to eval or to sympy's parse_expr, which evaluates it.
EXECUTING = frozenset(
    {
        *("binary_matrix", "spiral_matrix", "string_insertion", "n_queens", "countdown", "puzzle24"),
        *("polynomial_multiplication", "simple_integration", "intermediate_integration"),
    }
)
# These patterns match text of models in the caller's process. Ambiguous repetitions are possessive, so that a mismatch
# is found in one pass. Exponents need no separate pattern, because their "e" is a name of one letter.
_NUMBER = r"\d++\.?+|\.\d"
_NAME = r"(?<![A-Za-z_])(?:[A-Za-z_]|a?(?:sin|cos|tan|sec|csc|cot)h?|exp|log|ln|sqrt|pi)(?![A-Za-z_])"
_SIGN = r"[\s+\-*/^%,=()\[\]|]"
_FORMULA = re.compile(f"(?:{_NUMBER}|{_NAME}|{_SIGN})*+")
_LIST_OF_WORDS = re.compile(r"""[\s\d,\[\]A-Za-z_"']*+""")
_CODE_WORD = re.compile(r"(?<![\"'A-Za-z_])[A-Za-z_]{2}")


def is_formula(text: str) -> bool:
    """Return whether a text has only numbers, single letters, elementary functions and signs. Linear in its length."""
    return bool(_FORMULA.fullmatch(text))


def _is_foreign(dataset: str) -> bool:
    """Return whether another package has the scorer, so that it is not known to only compare the answer."""
    if dataset in DATASETS:
        return _may_execute(DATASETS[dataset][0])
    return dataset.startswith(PLUGIN_PREFIX) and _may_execute(_function_of(dataset))


def _may_execute(scorer: Any) -> bool:
    """Return whether a dataset's class or a function may run answers. Its `executes_answers` decides if it has one."""
    package = str(scorer.__module__).partition(".")[0]
    return getattr(scorer, "executes_answers", package not in _REVIEWED_PACKAGES) is not False


@cache
def _function_of(name: str) -> Any:
    return load_plugin(name, kind="verifier")


def may_run_code(dataset: str, answer: str) -> bool:
    """Return whether judging `answer` could do more than compute.

    Formulas of numbers, single letters and elementary functions cannot, and neither can lists of quoted words, because
    they contain no names that could have side effects. They may still take forever to judge.

    Args:
        dataset: The dataset, whose scorer judges the answer.
        answer: Untrusted text of a model. The time is linear in its length.

    Returns:
        Whether the scorer may execute the answer.

    >>> may_run_code("countdown", "(3 + 4) * 6"), may_run_code("countdown", "exec('1')"), may_run_code("gcd", "exit()")
    (False, True, False)
    """
    if not (dataset in EXECUTING or _is_foreign(dataset)) or is_formula(answer):
        return False
    return not _LIST_OF_WORDS.fullmatch(answer) or bool(_CODE_WORD.search(answer))
