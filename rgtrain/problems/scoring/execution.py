"""Decide which answers a scorer would run as code."""

import re

# Their scorers pass text of the answer to eval or to sympy's parse_expr, which evaluates it.
EXECUTING = frozenset(
    {
        *("binary_matrix", "spiral_matrix", "string_insertion", "n_queens", "countdown", "puzzle24"),
        *("polynomial_multiplication", "simple_integration", "intermediate_integration"),
    }
)
# These patterns meet model text in the caller's process. Every repetition that could be split in two ways is
# possessive, so that a text that does not match is given up in one pass.
# Exponents need no separate pattern: their "e" is a name of one letter.
_NUMBER = r"\d++\.?+|\.\d"
_NAME = r"(?<![A-Za-z_])(?:[A-Za-z_]|a?(?:sin|cos|tan|sec|csc|cot)h?|exp|log|ln|sqrt|pi)(?![A-Za-z_])"
_SIGN = r"[\s+\-*/^%,=()\[\]|]"
_FORMULA = re.compile(f"(?:{_NUMBER}|{_NAME}|{_SIGN})*+")
_LIST_OF_WORDS = re.compile(r"""[\s\d,\[\]A-Za-z_"']*+""")
_CODE_WORD = re.compile(r"(?<![\"'A-Za-z_])[A-Za-z_]{2}")


def may_run_code(dataset: str, answer: str) -> bool:
    """Return whether judging `answer` could do more than compute.

    A formula of numbers, single letters and elementary functions cannot, nor can a list of quoted words: they name
    nothing that could leave a trace in the process. They may still take forever to judge. The time that this function
    takes is linear in the length of `answer`.

    Args:
        dataset: Name of the dataset whose scorer judges the answer.
        answer: Untrusted text of a model.

    >>> may_run_code("countdown", "(3 + 4) * 6"), may_run_code("countdown", "exec('1')"), may_run_code("gcd", "exit()")
    (False, True, False)
    """
    if dataset not in EXECUTING or _FORMULA.fullmatch(answer):
        return False
    return not _LIST_OF_WORDS.fullmatch(answer) or bool(_CODE_WORD.search(answer))
