"""The answers of evaluations as data for pages: grouped by problem, with texts of limited length."""

import json
from collections.abc import Sequence
from typing import Any

from rgtrain.evaluation.judged_answers import Answer
from rgtrain.problems.entries import load_entry

# The longest text in a page. Complete texts are in results.jsonl.
_MAX_CHARS = 20_000
# The longest sum of all texts in JSON. A browser, whose strings end at 2**29 characters, opens it in some seconds.
_MAX_SUM = 120_000_000


def text_limit(answers: Sequence[Answer]) -> int:
    """Return the length, in characters, to which the texts of a page with these answers are cut."""
    texts = [text for answer in answers for text in (answer.completion, answer.answer) if text]
    # A page has each question once.
    texts += [answer.question for answer in answers if answer.question and answer.repeat == 0]
    # Quotes, newlines and control characters take several characters in JSON.
    lengths = [(len(text), len(json.dumps(text, ensure_ascii=False)) / len(text)) for text in texts]
    limit = _MAX_CHARS
    while limit > 100 and sum(min(length, limit) * growth for length, growth in lengths) > _MAX_SUM:
        limit //= 2
    return limit


def problem_data(answer: Answer, *, max_chars: int) -> dict[str, Any]:
    """Return the fields of a page for the problem of an answer.

    Args:
        answer: One of the answers to the problem.
        max_chars: The length of the longest text, in characters.

    Returns:
        Plain JSON values: the problem's number in the evaluation, name, question, expected answer and difficulty.
    """
    return {
        "id": answer.problem,
        "name": f"{answer.dataset} {answer.index}",
        "seed": answer.seed,
        "question": _clipped(answer.question, max_chars),
        "expected": _expected(answer, max_chars),
        "difficulty": dict(answer.difficulty),
    }


def answer_data(answer: Answer, *, max_chars: int) -> dict[str, Any]:
    """Return the fields of a page for an answer, as plain JSON values.

    Args:
        answer: The answer.
        max_chars: The length of the longest text, in characters.
    """
    return {
        "repeat": answer.repeat,
        "verdict": _verdict(answer),
        "score": answer.score,
        "error": f"refused by the endpoint: {answer.refused}" if answer.refused else answer.error,
        "tokens": answer.tokens,
        "cut": answer.finish_reason == "length",
        "completion": _clipped(answer.completion, max_chars),
        "answer": _clipped(answer.answer, max_chars),
    }


def _verdict(answer: Answer) -> str:
    if answer.error or answer.refused:
        return "error"
    if answer.answer is None:
        return "none"
    return "right" if answer.is_right else "partly" if answer.score > 0 else "wrong"


def _expected(answer: Answer, max_chars: int) -> str | None:
    try:
        expected = load_entry(answer.entry).get("answer") if answer.entry else None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return "(the entry in results.jsonl is damaged)"
    return None if expected is None else _clipped(str(expected), max_chars)


def _clipped(text: str | None, max_chars: int) -> str | None:
    if text is None or len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}… ({len(text) - max_chars} more characters in results.jsonl)"
