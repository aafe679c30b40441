"""Which answers a scorer would run as code."""

import re

# Their scorers pass text of the answer to eval or to sympy's parse_expr, which evaluates it.
EXECUTING = frozenset(
    {
        *("binary_matrix", "spiral_matrix", "string_insertion", "n_queens", "countdown", "puzzle24"),
        *("polynomial_multiplication", "simple_integration", "intermediate_integration"),
    }
)
_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+"
_NAME = r"(?<![A-Za-z_])(?:[A-Za-z_]|a?(?:sin|cos|tan|sec|csc|cot)h?|exp|log|ln|sqrt|pi)(?![A-Za-z_])"
_SIGN = r"[\s+\-*/^%,=()\[\]|]"
_FORMULA = re.compile(f"(?:{_NUMBER}|{_NAME}|{_SIGN})*")
_LIST_OF_WORDS = re.compile(r"""[\s\d,\[\]A-Za-z_"']*""")
_CODE_WORD = re.compile(r"(?<![\"'A-Za-z_])[A-Za-z_]{2,}")


def may_run_code(dataset: str, answer: str) -> bool:
    """Whether judging `answer` could do more than compute.

    Not so for a formula of numbers, single letters and elementary functions, nor for a list of quoted words: these
    name nothing that could leave a trace in the process. They may still take for ever.

    >>> may_run_code("countdown", "(3 + 4) * 6"), may_run_code("countdown", "exec('1')"), may_run_code("gcd", "exit()")
    (False, True, False)
    """
    if dataset not in EXECUTING or _FORMULA.fullmatch(answer):
        return False
    return not _LIST_OF_WORDS.fullmatch(answer) or bool(_CODE_WORD.search(answer))
