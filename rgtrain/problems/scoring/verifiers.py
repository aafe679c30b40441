"""Verifiers of short answers by name, for files of questions.

A verifier is a function `(answer, entry) -> score`, as `score_answer` of Reasoning Gym's datasets. It runs in a
confined process. Each takes time linear in the length of the answer, except `expression`, which the scorer's time limit
ends.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rgtrain.problems.scoring.execution import is_formula

Judge = Callable[[str, Mapping[str, Any]], float]

# `source_dataset` of an entry that a named verifier judges.
VERIFIER_PREFIX = "verifier:"
# Longer numbers would take more than linear time to convert.
_MAX_DIGITS = 400
_NUMBER = re.compile(r"([+-]?)(\d++(?:\.\d*+)?|\.\d++)(?:[eE]([+-]?\d{1,3}+))?(?:/(\d++))?")
_DIGIT_GROUPS = re.compile(r"(?<=\d)[,_](?=\d\d\d(?!\d))")
_CHOICE = re.compile(r"[\s(\[*]*+(?:(?i:option|choice|answer)\b[\s:(*]*+)?([A-Za-z])(?=[).:\],*]|\s*+$)")
_DIFFERENCE = 1e-6


@dataclass(frozen=True)
class Verifier:
    """A verifier and the answers that a file may have for it.

    Attributes:
        judge: The function.
        allows: Returns whether a file's answer can be compared.
        words: The allowed answers, for messages.
    """

    judge: Judge
    allows: Callable[[str], bool]
    words: str


def exact(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for the same text, else 0. White space at the ends and its kind and amount do not matter."""
    return float(answer.split() == entry["answer"].split())


def ignore_case(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for the same text in upper or lower case and with or without a full stop at its end, else 0."""
    return float(_folded(answer) == _folded(entry["answer"]))


def numeric(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for an equal number, else 0.

    A number may have a sign, a decimal point, an exponent, a denominator, commas between groups of three digits, a
    currency sign before it, and a percent sign after it. Numbers are equal if they differ by at most a millionth of the
    expected one.

    Args:
        answer: Untrusted text of a model.
        entry: The entry, whose `answer` is a number.

    Returns:
        0 or 1.
    """
    given, expected = parse_number(answer), parse_number(entry["answer"])
    if given is None or expected is None:
        return 0.0
    return float(abs(given - expected) <= abs(expected) * Fraction(_DIFFERENCE))


def choice(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for the expected letter, else 0, as in `B`, `(b)`, `B. Paris` or `option B`."""
    return float(chosen_letter(answer) == chosen_letter(entry["answer"]))


def expression(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1 for an equal mathematical expression, else 0, as in `x*(x+1)` for `x^2 + x`.

    Expressions have numbers, variables of one letter and elementary functions. Other answers earn 0 and are not parsed,
    because parsing evaluates them.

    Args:
        answer: Untrusted text of a model.
        entry: The entry, whose `answer` is an expression.

    Returns:
        0 or 1.
    """
    import sympy

    given, expected = (_parsed(text) for text in (answer, entry["answer"]))
    return 0.0 if given is None or expected is None else float(sympy.simplify(given - expected) == 0)


def _parsed(text: str) -> Any:
    from sympy.parsing import sympy_parser

    if not is_formula(text) or any(mark in text for mark in "=,[]"):
        return None
    rules = (
        *sympy_parser.standard_transformations,
        sympy_parser.convert_xor,
        sympy_parser.implicit_multiplication_application,
    )
    names = {letter: sympy_parser.Symbol(letter) for letter in "ABCDFGHIJKLMNOPQRSTUVWXYZ"}
    try:
        return sympy_parser.parse_expr(text, local_dict=names, transformations=rules)
    except Exception:  # The parser raises many types.
        return None


def parse_number(text: str) -> Fraction | None:
    """Return the number that a text is, or None if it is not one."""
    text = text.strip().removeprefix("$").removesuffix(".").strip()
    is_percent = text.endswith("%")
    text = text.removesuffix("%").strip().replace("\N{MINUS SIGN}", "-")
    if len(text) > _MAX_DIGITS or not (found := _NUMBER.fullmatch(_DIGIT_GROUPS.sub("", text))):
        return None
    sign, digits, exponent, denominator = found.groups()
    if denominator is not None and not int(denominator):
        return None
    number = Fraction(digits) * Fraction(10) ** int(exponent or 0) / int(denominator or 1)
    return (-number if sign == "-" else number) / (100 if is_percent else 1)


def chosen_letter(text: str) -> str | None:
    """Return the letter of the option that a text chooses, as a capital, or None."""
    found = _CHOICE.match(text)
    return found[1].upper() if found else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


VERIFIERS = {
    "exact": Verifier(exact, lambda answer: True, "a text"),
    "ignore_case": Verifier(ignore_case, lambda answer: bool(_folded(answer)), "a text"),
    "numeric": Verifier(numeric, lambda answer: parse_number(answer) is not None, "a number"),
    "choice": Verifier(choice, lambda answer: chosen_letter(answer) is not None, "the letter of an option"),
    "expression": Verifier(
        expression, is_formula, "an expression of numbers, variables of one letter and elementary functions"
    ),
}
