"""Find out in a separate process whether datasets make problems with given parameters, because some never return.

`python -m rgtrain.curriculum.probe PLUGIN...` reads specs as JSON lines and replies to each with 1 or 0.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import TextIO

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.mixture import DatasetSpec, ProblemSource
from rgtrain.problems.plugins import import_plugins, imported_plugins

# Time limit for the first problems of a level. A training step draws dozens of problems.
_TIMEOUT_S = 10.0
_START_S = 120.0
_NUM_PROBLEMS = 2


# Answers by question, so that this process asks each question only once.
_cached_answers: dict[str, bool] = {}


def make_problems(specs: Sequence[DatasetSpec], *, timeout_s: float = _TIMEOUT_S) -> list[bool]:
    """Return for each spec whether it makes its first problems within `timeout_s`."""
    questions = [json.dumps([spec.generator, dump_entry(dict(spec.params))]) for spec in specs]
    while unknown := [question for question in questions if question not in _cached_answers]:
        _cached_answers.update(zip(unknown, _ask(unknown, timeout_s), strict=False))
    return [_cached_answers[question] for question in questions]


def _ask(questions: Sequence[str], timeout_s: float) -> list[bool]:
    """Ask a new process and return its answers; the list ends early after a timeout or a crash."""
    path = os.pathsep.join([str(PROJECT_ROOT), *map(os.path.abspath, sys.path)])
    command = [sys.executable, "-W", "ignore", "-m", "rgtrain.curriculum.probe", *imported_plugins()]
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    answers: list[bool] = []
    ours, theirs = socket.socketpair()
    with ours, ours.makefile("r") as replies:
        with theirs:
            fd = theirs.fileno()
            process = subprocess.Popen(command, env=environment, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL)
        with process:
            try:
                if (line := _next_line(replies, _START_S)) != "ready":
                    raise ConfigError(
                        f"the process that tests the levels of a curriculum did not start: {line or 'it exited'}"
                    )
                for question in questions:
                    # Ask one question at a time: `select` does not see a second answer that is already buffered.
                    ours.sendall(f"{question}\n".encode())
                    line = _next_line(replies, timeout_s)
                    answers.append(line == "1")
                    if line is None:
                        break
            finally:
                process.kill()
    return answers


def _next_line(replies: TextIO, timeout_s: float) -> str | None:
    """Return the next line of `replies`, or None after a timeout or at the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(replies, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            return None
    return replies.readline().strip() or None


def _answer_questions() -> None:
    # Two datasets print. Redirect their output, so that it is not read as an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        import_plugins(sys.argv[1:])
    except ConfigError as error:
        print(error, file=answers)
        return
    print("ready", file=answers)
    for line in sys.stdin:
        name, params = json.loads(line)
        print(int(_makes_problems(DatasetSpec(name, params=load_entry(params)))), file=answers)


def _makes_problems(spec: DatasetSpec) -> bool:
    try:
        source = ProblemSource(spec, seed=0, size=_NUM_PROBLEMS)
        for index in range(_NUM_PROBLEMS):
            source[index]
    except Exception:  # Datasets raise many types, even for parameters of their curriculum.
        return False
    return True


if __name__ == "__main__":
    _answer_questions()
