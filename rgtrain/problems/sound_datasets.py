"""Datasets with a corrected verifier, registered as `sound/NAME` beside Reasoning Gym's own `NAME`.

Each one makes the problems of the original and judges answers in another way, because the original pays for a constant
answer. docs/verifier-faults.md describes the faults.

The scorers read untrusted text. They run no part of it, take linear time, and accept the usual ways of writing an
answer.
"""

import ast
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from reasoning_gym.algebra.complex_arithmetic import ComplexArithmeticDataset
from reasoning_gym.algorithmic.game_of_life import GameOfLifeDataset
from reasoning_gym.algorithmic.game_of_life_halting import GameOfLifeHaltingDataset
from reasoning_gym.factory import CURRICULA, DATASETS, register_dataset
from reasoning_gym.games.puzzle24 import Puzzle24Dataset
from reasoning_gym.probability.coin_flip import CoinFlipDataset

SOUND_PREFIX = "sound/"

Entry = Mapping[str, Any]

# Longer than every right answer, so that parsing stays cheap.
_MAX_FORMULA_CHARS = 200
_MAX_SHORT_CHARS = 100
_ABSOLUTE_TOLERANCE = 1e-4
_RELATIVE_TOLERANCE = 1e-2
_WRAPPED = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*+\{(.*)\}|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
_MARKS_AROUND = " \t\r\n*_`$\"'"
_TYPESET_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u00d7\u2217\u00b7\u22c5", "*"),
        **dict.fromkeys("\u2212\u2013", "-"),
        "\u00f7": "/",
        "\u2248": "=",
    }
)
_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,20})\}\{(\d{1,20})\}")
_UNSIGNED = r"(?:\d++(?:\.\d*+)?+|\.\d++)(?:e[+-]?\d{1,3}+)?+"
_COMPLEX_TERM = re.compile(rf"[+-]?+(?:{_UNSIGNED}(?:\*?+[ij])?+|[ij])", re.ASCII)
_FORMULA_SIGNS = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": ""}
_FORMULA_BRACKETS = str.maketrans("[]{}x", "()()*")
_OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class SoundGameOfLifeHalting(GameOfLifeHaltingDataset):
    """Game of Life with the answer True or False. The original compares `bool(answer)`, true for every text."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for the right word in any case, else 0."""
        return float(_without_markup(answer, _MAX_SHORT_CHARS).casefold() == entry["answer"].casefold())


class SoundGameOfLife(GameOfLifeDataset):
    """Game of Life with a board as the answer. The original pays the share of right cells, most of which are 0."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for the right board as JSON, which may stand in a code block, else 0."""
        board = entry["answer"]
        # Spaces and line breaks make a board up to three times as long.
        if answer is None or len(answer) > 4 * len(board):
            return 0.0
        try:
            return float(json.loads(answer[answer.find("[") : answer.rfind("]") + 1]) == json.loads(board))
        except (ValueError, RecursionError):
            return 0.0


class SoundCoinFlip(CoinFlipDataset):
    """Probabilities of coin flips. The original pays for equal first characters, such as the 0 of a probability."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for a decimal number, fraction or percentage that is right within 0.0001 and within 1 %, else 0."""
        # Imported here, because the package of scoring imports the mixture, which imports this module.
        from rgtrain.problems.scoring.verifiers import parse_number

        stated = _without_markup(answer, _MAX_SHORT_CHARS).rpartition("=")[2]
        number = parse_number("".join(_FRACTION.sub(r"\1/\2", stated).replace("\\%", "%").split()))
        if number is None:
            return 0.0
        rational = entry["metadata"]["rational"]
        right = Fraction(rational["numerator"], rational["denominator"])
        return float(abs(number - right) <= min(_ABSOLUTE_TOLERANCE, _RELATIVE_TOLERANCE * right))


class SoundComplexArithmetic(ComplexArithmeticDataset):
    """Arithmetic with complex numbers. The original pays 1 for nan, because `min(1.0, nan)` is 1.0."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return exp(-distance) to the right number, in [0, 1]; 0 for anything but one finite number."""
        number = _read_complex(_without_markup(answer, _MAX_SHORT_CHARS).rpartition("=")[2])
        if number is None:
            return 0.0
        right = complex(*entry["metadata"]["result"])
        return math.exp(-math.hypot(number.real - right.real, number.imag - right.imag))


class SoundPuzzle24(Puzzle24Dataset):
    """Make 24 from four numbers. The original accepts any four numbers, and runs the answer as Python."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for a formula of +, -, *, / and brackets that uses each number once and equals 24, else 0."""
        formula = _without_markup(answer, _MAX_FORMULA_CHARS)
        for command, sign in _FORMULA_SIGNS.items():
            formula = formula.replace(command, sign)
        try:
            tree = ast.parse(formula.translate(_FORMULA_BRACKETS).strip(), mode="eval").body
            numbers = Counter(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
            return float(numbers == Counter(entry["metadata"]["numbers"]) and _evaluate(tree) == 24)
        except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
            return 0.0


def original_of(generator: str) -> str:
    """Return the dataset whose problems `generator` makes: NAME for `sound/NAME`, else `generator` itself."""
    return generator.removeprefix(SOUND_PREFIX)


def generators_of_same_problems(generator: str) -> tuple[str, ...]:
    """Return `generator`, and its original or corrected form if there is one."""
    original = original_of(generator)
    return (original, SOUND_PREFIX + original) if SOUND_PREFIX + original in DATASETS else (generator,)


def _evaluate(node: ast.AST) -> Fraction:
    """Return the value of a formula of whole numbers. Raises ValueError if it has anything else."""
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return Fraction(number)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATIONS:
            return _OPERATIONS[type(sign)](_evaluate(left), _evaluate(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand)
    raise ValueError(f"a formula cannot have a {type(node).__name__}")


def _read_complex(text: str) -> complex | None:
    """Return the finite complex number that a text is, or None. It has one real part, one imaginary part, or both."""
    text = "".join(text.lower().split()).replace("+-", "-")
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    parts: dict[bool, float] = {}
    position = 0
    while position < len(text):
        term = _COMPLEX_TERM.match(text, position)
        if term is None or (position and term[0][0] not in "+-"):
            return None
        coefficient = term[0].rstrip("ij")
        is_imaginary = coefficient != term[0]
        # A second part of a kind would be a sum that is left to the reader.
        if is_imaginary in parts:
            return None
        coefficient = coefficient.removesuffix("*")
        parts[is_imaginary] = float(f"{coefficient}1" if coefficient in ("", "+", "-") else coefficient)
        position = term.end()
    if not parts or not all(map(math.isfinite, parts.values())):
        return None
    return complex(parts.get(False, 0.0), parts.get(True, 0.0))


def _without_markup(answer: str | None, max_chars: int) -> str:
    r"""Return an answer in plain characters without the markup around it.

    Args:
        answer: Untrusted text of a model.
        max_chars: Longer answers are not read.

    Returns:
        The text without bold marks, quotation marks, `\boxed{}` and similar commands around it, and without a full stop
        at its end. It is empty if there is no answer or it is too long.
    """
    if answer is None or len(answer) > max_chars:
        return ""
    text = answer.translate(_TYPESET_SIGNS).strip(_MARKS_AROUND)
    text = text.removesuffix(".").strip(_MARKS_AROUND)
    while found := _WRAPPED.fullmatch(text):
        text = (found[1] or found[2] or found[3] or "").strip(_MARKS_AROUND)
    return text


for _name, _dataset in {
    "coin_flip": SoundCoinFlip,
    "complex_arithmetic": SoundComplexArithmetic,
    "game_of_life": SoundGameOfLife,
    "game_of_life_halting": SoundGameOfLifeHalting,
    "puzzle24": SoundPuzzle24,
}.items():
    register_dataset(SOUND_PREFIX + _name, _dataset, DATASETS[_name][1], CURRICULA.get(_name))
