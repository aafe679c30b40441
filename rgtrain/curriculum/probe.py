"""Whether datasets make problems with given parameters, asked in another process: some never return.

python -m rgtrain.curriculum.probe reads specs as JSON lines and answers each with 1 or 0.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import TextIO

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.mixture import DatasetSpec, ProblemSource

# Seconds for a level's first problems; a training step draws dozens.
_TIMEOUT_S = 10.0
_START_S = 120.0
_NUM_PROBLEMS = 2


# By question, so that a process asks only once.
_known: dict[str, bool] = {}


def make_problems(specs: Sequence[DatasetSpec], *, timeout_s: float = _TIMEOUT_S) -> list[bool]:
    """For each spec, whether it gives its first problems within `timeout_s`."""
    questions = [json.dumps([spec.name, dump_entry(dict(spec.params))]) for spec in specs]
    while unknown := [question for question in questions if question not in _known]:
        _known.update(zip(unknown, _ask(unknown, timeout_s), strict=False))
    return [_known[question] for question in questions]


def _ask(questions: Sequence[str], timeout_s: float) -> list[bool]:
    """The answers of one process: to all questions, or up to one it didn't answer in time, or died of."""
    path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", "-m", "rgtrain.curriculum.probe"]
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    answers: list[bool] = []
    ours, theirs = socket.socketpair()
    with ours, ours.makefile("r") as replies:
        with theirs:
            fd = theirs.fileno()
            process = subprocess.Popen(command, env=environment, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL)
        with process:
            try:
                if _next_line(replies, _START_S) != "ready":
                    raise RuntimeError("the process that tries a curriculum's levels did not start")
                for question in questions:
                    # One at a time: of two answers at once, the second would wait unseen in a buffer.
                    ours.sendall(f"{question}\n".encode())
                    line = _next_line(replies, timeout_s)
                    answers.append(line == "1")
                    if line is None:
                        break
            finally:
                process.kill()
    return answers


def _next_line(replies: TextIO, timeout_s: float) -> str | None:
    """Return the next line of `replies`, or None if none comes in time or ever."""
    with selectors.DefaultSelector() as selector:
        selector.register(replies, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            return None
    return replies.readline().strip() or None


def _answer_questions() -> None:
    # Two datasets print; their output must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print("ready", file=answers)
    for line in sys.stdin:
        name, params = json.loads(line)
        print(int(_gives_problems(DatasetSpec(name, params=load_entry(params)))), file=answers)


def _gives_problems(spec: DatasetSpec) -> bool:
    try:
        source = ProblemSource(spec, seed=0, size=_NUM_PROBLEMS)
        for index in range(_NUM_PROBLEMS):
            source[index]
    except Exception:  # whatever a dataset raises at parameters that its own curriculum names
        return False
    return True


if __name__ == "__main__":
    _answer_questions()
