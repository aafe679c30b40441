"""Completions that were received are kept, however the process, its engine or its judges end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import Pipe
from pathlib import Path

import pytest
from support.chat_server import KEY, serving
from support.endpoint_evaluation import NUM_PROBLEMS, endpoint_config

from rgtrain.evaluation.engine_interface import Completion, EngineFailed, Prompt, Sampling
from rgtrain.evaluation.evaluation_stopping import STOP, EvaluationStopped
from rgtrain.evaluation.replicas import ReplicatedEngine, _Ready
from rgtrain.evaluation.results import ResultsFolder, read_answers
from rgtrain.evaluation.runner import evaluate
from rgtrain.paths import PROJECT_ROOT

NUM_ANSWERS = 2 * NUM_PROBLEMS
# Runs the command once for each line of its input, in a fork, which takes a tenth of the time of a new process.
COMMANDS = """
import os, sys
import httpx, openai, rgtrain.evaluation.runner, rgtrain.reporting.evaluation_report
from rgtrain.commands.evaluate_command import main

for line in sys.stdin:
    if os.fork() == 0:
        print("started", os.getpid(), flush=True)
        main(["--config", line.strip()], program="evaluate")
        sys.exit(0)
    print("ended", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


class Commands:
    """Runs the command in forks of one process that has imported it."""

    def __init__(self, folder: Path):
        self._errors = folder / "errors.txt"
        self._running: int | None = None
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMANDS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "PYTHONHASHSEED": "0"},
            )

    def start(self, file: Path) -> int:
        """Start the command and return its process id."""
        self._process.stdin.write(f"{file}\n")
        self._process.stdin.flush()
        self._running = self._number_after("started ")
        return self._running

    def end(self) -> tuple[int, str]:
        """Wait for the end of the command, and return its exit code and output."""
        code = self._number_after("ended ")
        self._running = None
        return code, self._said + self._errors.read_text()

    def _number_after(self, word: str) -> int:
        self._said = ""
        for line in self._process.stdout:
            if line.startswith(word):
                return int(line.removeprefix(word))
            self._said += line
        raise AssertionError(self._errors.read_text())

    def close(self) -> None:
        """End the process, and a command that a failed test has left."""
        if self._running is not None:
            os.kill(self._running, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def judges_of(pid: int) -> list[int]:
    """Return the process groups of the scorer of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"scoring.server" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_received_answers_are_kept_and_judged_later_if_the_process_or_its_judges_are_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # So slow that a busy machine suspends the judges long before the last answer.
    with serving(seconds=0.2) as server, closing(Commands(tmp_path)) as commands:
        # With one dataset, because suspended judges can't load the scorer of a second one.
        datasets = [{"dataset": "chain_sum", "size": NUM_PROBLEMS}]
        categories = [{"category": "sums", "datasets": datasets}]
        config = endpoint_config(tmp_path, server.base_url, endpoint={"max_concurrent": 4}, categories=categories)
        folder = ResultsFolder(config.results_folder)

        def num_kept() -> int:
            """Return the number of answers in the files. The second file may still have some that are judged."""
            files = [path.read_text() for path in (folder.results, folder.received) if path.exists()]
            lines = [line for text in files for line in text.splitlines(keepends=True) if line.endswith("\n")]
            return len({(line["problem"], line["repeat"]) for line in map(json.loads, lines)})

        def num_judged() -> int:
            return folder.results.read_bytes().count(b"\n") if folder.results.exists() else 0

        def start_and_stop_judging() -> int:
            """Start the command, suspend its judges, and wait until some more answers are received."""
            num_before = num_kept()
            pid = commands.start(tmp_path / "endpoint.yaml")
            # Suspended judges can't load a scorer or judge earlier answers, so wait for the first new judged answer.
            wait_until(lambda: num_judged() > num_before)
            for judges in judges_of(pid):
                os.killpg(judges, signal.SIGSTOP)
            num_now = num_kept()
            wait_until(lambda: num_kept() >= num_now + 5)
            return pid

        os.kill(start_and_stop_judging(), signal.SIGKILL)
        assert commands.end()[0] == -signal.SIGKILL
        page = folder.path / "report.html"
        assert all(part in page.read_text() for part in ("It is running.", "These are partial results.", "</html>"))
        first = num_kept()

        pid = start_and_stop_judging()
        for judges in judges_of(pid):
            os.killpg(judges, signal.SIGKILL)
        code, said = commands.end()
        assert re.search(r"error: answers can't be judged, because the scorer ended \(.*\); \d+ of 120 answers", said)
        second = num_kept()
        assert (code, says_kept(said)) == (1, second)
        assert f"It was stopped or has failed. {second} of 120 answers are kept" in page.read_text()

        pid = start_and_stop_judging()
        os.kill(pid, signal.SIGTERM)
        time.sleep(1.1)
        os.kill(pid, signal.SIGTERM)
        code, said = commands.end()
        assert first < second < num_kept() < NUM_ANSWERS
        assert (code, says_kept(said)) == (75, num_kept())

        num_answered, num_missing = server.num_answered, NUM_ANSWERS - num_kept()
        server.seconds = 0
        evaluate(config, command=["x"])
    assert server.num_answered == num_answered + num_missing
    answers = read_answers(folder.results)
    assert [answer.key for answer in answers] == [(p, repeat) for p in range(NUM_PROBLEMS) for repeat in range(2)]
    assert all(answer.answer == str(len(answer.question)) for answer in answers)
    assert not folder.received.exists()


def says_kept(said: str) -> int:
    """Return the number of kept answers that the command reports."""
    found = re.findall(r"(\d+) of 120 answers are kept, \d+ of them not judged yet; the same command continues", said)
    return max(map(int, found))


@pytest.mark.parametrize(("is_stopped", "error"), [(False, EngineFailed), (True, EvaluationStopped)])
def test_completions_that_other_copies_have_sent_are_yielded_before_the_engine_ends(monkeypatch, is_stopped, error):
    pipes = [Pipe() for _ in range(2)]
    engine = object.__new__(ReplicatedEngine)
    engine._connections = [ours for ours, _ in pipes]
    engine._ready = [_Ready(max_num_seqs=2, seeds_prompts=False)] * 2
    engine._seed = 0
    for number, (_, theirs) in enumerate(pipes):
        theirs.send((number, Completion("a", 1, "stop")))
        theirs.send((number + 2, Completion("b", 1, "stop")))
    answers = engine.generate([Prompt([], [1], 1)] * 4, Sampling(8, 0))
    received = [next(answers)]
    if not is_stopped:
        pipes[0][1].close()
    monkeypatch.setattr(STOP, "is_made", is_stopped)
    with pytest.raises(error):
        received.extend(answers)
    assert sorted((position, completion.text) for position, completion in received) == [
        (0, "a"),
        (1, "a"),
        (2, "b"),
        (3, "b"),
    ]
