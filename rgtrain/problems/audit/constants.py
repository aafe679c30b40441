"""Answers that know nothing of the question: constants that might pay, junk that must not, text that breaks scorers."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# What one may call an answer without having read the question.
FIXED = (
    *("0", "1", "-1", "2", "10", "24", "100", "0.0", "0.5", "1/2", "0/1", "0j", "nan", "-nan", "inf", "-inf"),
    *(
        "None",
        "null",
        "True",
        "False",
        "yes",
        "no",
        "Yes",
        "No",
        "Pass",
        "undefined",
        "unknown",
        "impossible",
        "-",
        ".",
    ),
    *("[]", "[[]]", "[0]", "{}", "()", "(0, 0)", '""', "''", "?", "*", "_", "a", "A", "x", "A, B, C, D", "hello"),
    *("0 0 0 0", "0 1", "[[0,0],[0,0]]", "[[1,1]]", "1+1", "6*4*1*1", "x + 1", "C", "P"),
    *("P ∨ Q", "P ∨ ¬P", "P ∧ ¬P"),  # noqa: RUF001
)
JUNK = ("I don't know.", "lorem ipsum dolor sit amet", "#!%&~")
HOSTILE = ("9**9**9**9", "1e309", "9" * 5_000, "(" * 2_000, "[" * 2_000, "\x00", "A+1000000000", "¬" * 1_100 + "P")

# Where an entry has no answer, its metadata may name one of several right ones.
_EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")
_NUM_MUTATED = 5
_MOST_AT_ONCE = 6
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# What fills the cells of a board, as against what draws it.
_CELL = re.compile(r"[^\s,;\[\](){}\"']")


def known_answer(entry: Mapping[str, Any]) -> str | None:
    """The entry's right answer, else one that its metadata gives as an example; None where it has neither."""
    metadata = entry.get("metadata") or {}
    for answer in (entry.get("answer"), *(metadata.get(key) for key in _EXAMPLES)):
        if answer is not None:
            return answer if isinstance(answer, str) else json.dumps(answer)
    return None


def constant_candidates(known_answers: Sequence[str]) -> list[str]:
    """Different answers worth trying on every item of a dataset, given right ones of some items.

    The right ones themselves, commonest first; the fixed ones; all right ones at once, where they are few; and boards,
    lists and expressions of their form filled with zeros or with their commonest sign.
    """
    known = [answer for answer, _ in Counter(known_answers).most_common()]
    candidates = [*known, *FIXED]
    if len(known) <= _MOST_AT_ONCE:
        candidates.append(" ".join(known))
    for answer in known[:_NUM_MUTATED]:
        candidates += [_NUMBER.sub("0", answer), re.sub(r"\d", "0", answer), _filled(answer)]
    return [answer for answer in dict.fromkeys(candidates) if answer.strip()]


def _filled(answer: str) -> str:
    cells = Counter(_CELL.findall(answer)).most_common(1)
    return _CELL.sub(cells[0][0].replace("\\", r"\\"), answer) if cells else answer
