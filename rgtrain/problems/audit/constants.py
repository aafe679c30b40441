"""Answers that do not depend on the question: constants that may pay, junk that must not, and hostile text."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# Plausible answers to an unknown question.
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

# Metadata keys of an example answer, for entries without an answer.
_EXAMPLE_KEYS = ("possible_answer", "example_answer", "example_correct_answer")
_NUM_MUTATED = 5
_MAX_JOINED = 6
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# A character in a cell of a board, as opposed to a separator.
_CELL = re.compile(r"[^\s,;\[\](){}\"']")


def known_answer(entry: Mapping[str, Any]) -> str | None:
    """Return the answer of the entry, or an example answer from its metadata, or None if it has neither."""
    metadata = entry.get("metadata") or {}
    for answer in (entry.get("answer"), *(metadata.get(key) for key in _EXAMPLE_KEYS)):
        if answer is not None:
            return answer if isinstance(answer, str) else json.dumps(answer)
    return None


def constant_candidates(known_answers: Sequence[str]) -> list[str]:
    """Return distinct constant answers to try on every item of a dataset.

    These are the known answers (most frequent first), the fixed answers, all known answers joined if they are few, and
    known answers with their cells or digits replaced by zeros or by the most frequent character.

    Args:
        known_answers: Right answers to some items.

    Returns:
        The candidates, without duplicates and blank answers.
    """
    known = [answer for answer, _ in Counter(known_answers).most_common()]
    candidates = [*known, *FIXED]
    if len(known) <= _MAX_JOINED:
        candidates.append(" ".join(known))
    for answer in known[:_NUM_MUTATED]:
        candidates += [_NUMBER.sub("0", answer), re.sub(r"\d", "0", answer), _filled(answer)]
    return [answer for answer in dict.fromkeys(candidates) if answer.strip()]


def _filled(answer: str) -> str:
    cells = Counter(_CELL.findall(answer)).most_common(1)
    return _CELL.sub(cells[0][0].replace("\\", r"\\"), answer) if cells else answer
