"""Every field of a line in the results folder is checked."""

import json

import pytest

from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.received_completions import ReceivedCompletion

ANSWER = Answer(3, 0, "c", "d", 42, 3, "f" * 32, "4", 0.5, None, 5, "stop", "q", "text", "{}", {"n": 2}, "")
COMPLETION = ReceivedCompletion(3, 0, "f" * 32, Completion("text", 5, "stop", "why", ""))


def broken(record: Answer | ReceivedCompletion, **values: list) -> list:
    """Return a line for each broken value of each field, and for each missing field."""
    fields = json.loads(record.to_line())
    lines = [fields | {name: value} for name, broken_values in values.items() for value in broken_values]
    optional = ("question", "completion", "entry", "difficulty", "refused") if isinstance(record, Answer) else ()
    missing = [{key: fields[key] for key in fields if key != name} for name in fields if name not in optional]
    return [(type(record), json.dumps(line).encode()) for line in [*lines, *missing, fields | {"more": 1}]]


COUNTS = [-1, "0", True, 1.0, None, 1 << 60, [], {}]
TEXTS = [3, None, [], {}]
NEITHER = [0, False, [], {}]
BROKEN = [
    *broken(
        ANSWER,
        **dict.fromkeys(("problem", "repeat", "seed", "index"), COUNTS),
        **dict.fromkeys(("category", "dataset", "fingerprint"), TEXTS),
        **dict.fromkeys(("answer", "finish_reason", "question", "completion", "entry"), NEITHER),
        score=["1", None, True, float("nan"), float("inf"), 1.5, -0.1, 10**400],
        error=["no such kind", 1, ""],
        tokens=[-1, "5", 5.0, True, float("nan")],
        refused=[None, "x" * 201],
        difficulty=[None, [], {"n": float("inf")}, {"n": True}, {"n": "1"}, {"n": 10**400}],
    ),
    *broken(
        COMPLETION,
        **dict.fromkeys(("problem", "repeat"), COUNTS),
        **dict.fromkeys(("fingerprint", "text", "reasoning_text", "refused"), TEXTS),
        num_tokens=[-1, "5", 5.0, True],
        finish_reason=[0, []],
    ),
]
NOT_LINES = [b"", b"{", b"[]", b"null", b"5", b"\0" * 100, b"\xff\xfe{}", b"[" * 200_000, b"9" * 10_000]


def test_records_are_read_as_they_were_written():
    assert Answer.from_line(ANSWER.to_line()) == ANSWER
    assert ReceivedCompletion.from_line(COMPLETION.to_line()) == COMPLETION


def test_every_broken_value_and_every_missing_or_unknown_field_is_refused_in_one_short_line():
    accepted = []
    for kind, line in BROKEN:
        try:
            accepted.append(kind.from_line(line))
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) < 250
    assert accepted == []


@pytest.mark.parametrize("kind", [Answer, ReceivedCompletion])
def test_anything_but_a_mapping_is_refused(kind):
    for line in [*NOT_LINES, *(ANSWER.to_line()[:length] for length in range(1, 80, 7))]:
        with pytest.raises(ValueError, match=".{1,200}"):
            kind.from_line(line)
