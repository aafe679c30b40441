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
_MAX_NUMBER_CHARS = 100
_ABSOLUTE_TOLERANCE = 1e-4
_RELATIVE_TOLERANCE = 1e-2
_NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d{1,3}+)?+"
_RATIO = re.compile(rf"({_NUMBER})\s*+(?:/\s*+({_NUMBER}))?+", re.ASCII)
_OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_TYPESET_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-"})


class SoundGameOfLifeHalting(GameOfLifeHaltingDataset):
    """Game of Life with the answer True or False. The original compares `bool(answer)`, true for every text."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for the right word in any case, which may end with a full stop, else 0."""
        return float(answer is not None and answer.strip().removesuffix(".").casefold() == entry["answer"].casefold())


class SoundGameOfLife(GameOfLifeDataset):
    """Game of Life with a board as the answer. The original pays the share of right cells, most of which are 0."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for the right board as JSON, else 0."""
        board = entry["answer"]
        # Spaces and line breaks make a board up to three times as long.
        if answer is None or len(answer) > 4 * len(board):
            return 0.0
        try:
            return float(json.loads(answer) == json.loads(board))
        except (ValueError, RecursionError):
            return 0.0


class SoundCoinFlip(CoinFlipDataset):
    """Probabilities of coin flips. The original pays for equal first characters, such as the 0 of a probability."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for a decimal number or fraction that is right within 0.0001 and within 1 %, else 0."""
        number = _read_ratio(answer)
        if number is None:
            return 0.0
        rational = entry["metadata"]["rational"]
        right = rational["numerator"] / rational["denominator"]
        return float(abs(number - right) <= min(_ABSOLUTE_TOLERANCE, _RELATIVE_TOLERANCE * right))


class SoundComplexArithmetic(ComplexArithmeticDataset):
    """Arithmetic with complex numbers. The original pays 1 for nan, because `min(1.0, nan)` is 1.0."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return exp(-distance) to the right number, in [0, 1]; 0 for a number that is not finite."""
        if answer is None or len(answer) > _MAX_NUMBER_CHARS:
            return 0.0
        number = self.parse_string_to_complex(answer.strip())
        if number is None or not (math.isfinite(number.real) and math.isfinite(number.imag)):
            return 0.0
        right = complex(*entry["metadata"]["result"])
        return math.exp(-math.hypot(number.real - right.real, number.imag - right.imag))


class SoundPuzzle24(Puzzle24Dataset):
    """Make 24 from four numbers. The original accepts any four numbers, and runs the answer as Python."""

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Return 1 for a formula of +, -, *, / and brackets that uses each number once and equals 24, else 0."""
        if answer is None or len(answer) > _MAX_FORMULA_CHARS:
            return 0.0
        try:
            tree = ast.parse(answer.strip().translate(_TYPESET_SIGNS), mode="eval").body
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
    raise ValueError(f"a formula cannot have a {type(node).__name__}")


def _read_ratio(answer: str | None) -> float | None:
    """Return the finite number that a text consists of, or None."""
    found = None if answer is None or len(answer) > _MAX_NUMBER_CHARS else _RATIO.fullmatch(answer.strip())
    if found is None:
        return None
    denominator = float(found[2] or 1)
    number = float(found[1]) / denominator if denominator else math.inf
    return number if math.isfinite(number) else None


for _name, _dataset in {
    "coin_flip": SoundCoinFlip,
    "complex_arithmetic": SoundComplexArithmetic,
    "game_of_life": SoundGameOfLife,
    "game_of_life_halting": SoundGameOfLifeHalting,
    "puzzle24": SoundPuzzle24,
}.items():
    register_dataset(SOUND_PREFIX + _name, _dataset, DATASETS[_name][1], CURRICULA.get(_name))
