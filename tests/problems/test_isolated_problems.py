"""Datasets that run programs make their problems in a child process, and no other dataset runs programs."""

import faulthandler
import functools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import (
    DatasetSpec,
    HeldOut,
    TrainingProblems,
    build_mixture,
    dump_entry,
    load_entry,
    problem_maker,
)
from rgtrain.problems import isolated_problems as isolated
from rgtrain.problems.heldout import survey_spaces
from rgtrain.problems.mixture import Problem, ProblemSource, Split

FIRST = Split.TRAIN.base_seed(0)
# The index of a training problem whose program creates folders and outputs their paths.
MAKES_FOLDERS = 398


@pytest.fixture
def codeio() -> ProblemSource:
    return ProblemSource(DatasetSpec("codeio"), seed=FIRST)


def test_only_listed_datasets_run_programs_or_have_side_effects(problems_and_events):
    # If a new version of Reasoning Gym fails here, add the dataset to RUN_PROGRAMS.
    _, events = problems_and_events
    assert {name: done for name, done in events.items() if name not in isolated.RUN_PROGRAMS} == {}


WATCHED = """
import os, sys
sys.path.insert(0, "tests")
from support.make_problems import Watch
from rgtrain.problems.mixture import DatasetSpec, ProblemSource, Split

source = ProblemSource(DatasetSpec(sys.argv[1]), seed=Split.TRAIN.base_seed(0))
watch, stdout = Watch(), os.dup(1)
os.dup2(2, 1)
watch.current = sys.argv[1]
source.make_here(0)
watch.current = None
os.write(stdout, str(watch.events[sys.argv[1]]).encode())
"""


@pytest.mark.parametrize("name", sorted(isolated.RUN_PROGRAMS))
def test_every_listed_dataset_runs_programs(name, in_another_process, monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    assert "runs a program" in in_another_process("-c", WATCHED, name)


def test_a_problem_is_the_same_as_in_this_process(codeio, capfd):
    for index in range(8):
        assert dump_entry(codeio[index].entry) == dump_entry(codeio.make_here(index).entry)


def test_a_program_leaves_no_files_in_the_current_folder(codeio, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = codeio[MAKES_FOLDERS]
    assert "/index/table_" in made.question
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_outputs_its_folder_makes_the_same_problem_each_time(codeio):
    first, second = codeio[MAKES_FOLDERS], codeio[MAKES_FOLDERS]
    assert dump_entry(first.entry) == dump_entry(second.entry)


def test_parameters_keep_their_types(codeio):
    source = ProblemSource(DatasetSpec("codeio", params={"difficulty": 6}), seed=FIRST)
    assert source[0].entry["metadata"]["source_params"] == {"difficulty": 6}
    assert source[0].entry["metadata"]["difficulty"] == {"difficulty": 6}


def test_a_source_can_be_pickled(codeio):
    assert pickle.loads(pickle.dumps(codeio))[3] == codeio[3]


def test_threads_receive_the_problems_they_requested(codeio):
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(codeio.__getitem__, range(24)))
    assert made == [codeio[index] for index in range(24)]


def test_a_forked_process_can_make_problems(codeio):
    expected = codeio[5].fingerprint
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, codeio[5].fingerprint.encode())
        finally:
            isolated._close()
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 100).decode() == expected
    os.waitpid(pid, 0)
    assert codeio[5].fingerprint == expected


def test_a_killed_child_is_replaced(codeio):
    expected = codeio[2]
    os.kill(isolated._running._process.pid, signal.SIGKILL)
    assert codeio[2] == expected


def test_an_interrupted_request_does_not_affect_the_next_one(codeio):
    expected = [codeio[index] for index in range(3)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            for _ in range(10_000):
                codeio[7]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [codeio[index] for index in range(3)] == expected


ORPHANED = """
import time
from rgtrain.problems import isolated_problems, DatasetSpec
from rgtrain.problems.mixture import ProblemSource
ProblemSource(DatasetSpec("codeio"), seed=0)[0]
child = isolated_problems._running
print(child._process.pid, child._folder, flush=True)
time.sleep(600)
"""


def test_the_child_and_its_folder_disappear_if_the_parent_is_killed():
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, text=True, env=environment)
    pid, folder = parent.stdout.readline().split()
    assert Path(folder).is_dir()
    parent.kill()
    parent.wait()
    while Path(folder).exists() or Path(f"/proc/{pid}").exists():
        time.sleep(0.05)


def test_the_child_sees_no_credentials(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOMETHING"):
        monkeypatch.setenv(name, "secret")
    environment = isolated.clean_environment(str(tmp_path))
    assert "secret" not in str(environment.values())
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX"])
def test_the_child_has_the_linear_algebra_of_its_parent(kernels, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", kernels)
    assert isolated.clean_environment(str(tmp_path))["OPENBLAS_CORETYPE"] == kernels


def reply_to(program: Callable[[], object]) -> dict:
    """Return the reply for a problem whose generator returns the result of `program`."""

    def make_here(index: int) -> Problem:
        return Problem("d", 0, index, "?", {"question": "?", "answer": program(), "metadata": {}})

    ours, theirs = socket.socketpair()
    with ours, theirs:
        return json.loads(problem_maker.make_in_fork(SimpleNamespace(make_here=make_here), 0, theirs))


@pytest.fixture
def working_folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty folder in which the child creates its temporary folders."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def _crash() -> None:
    # Disable the fault handler of pytest, which would print all stacks and take over a second on a busy machine.
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def _endless() -> None:
    while True:
        pass


def _start_a_child() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return pid


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (functools.partial(sys.exit, 3), "SystemExit: 3"),
        (functools.partial(os._exit, 3), "its process exited with status 3"),
        (_crash, "its process exited with status -11"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: bytearray(8 << 30), "MemoryError"),
        (lambda: object(), "TypeError: cannot serialise a builtins.object"),
        (socket.socket, "PermissionError"),
        (functools.partial(subprocess.run, ["true"]), "PermissionError"),
        (_endless, "it exceeds 1 s of CPU time"),
    ],
)
def test_a_failing_program_is_an_error(working_folder, monkeypatch, program, error):
    monkeypatch.setattr(problem_maker, "_CPU_SECONDS", 1)
    assert error in reply_to(program)["error"]


def test_a_program_killed_from_outside_runs_again(working_folder, tmp_path_factory):
    mark = tmp_path_factory.mktemp("marks") / "mark"

    def be_killed_once() -> str:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "made"

    assert load_entry(reply_to(be_killed_once)["entry"])["answer"] == "made"


def test_a_program_that_waits_forever_is_an_error(working_folder, monkeypatch):
    monkeypatch.setattr(problem_maker, "_WALL_SECONDS", 2)
    assert "it exceeds 2 s" in reply_to(functools.partial(time.sleep, 600))["error"]


def test_files_output_and_processes_of_a_program_are_discarded(working_folder, capfd):
    made = reply_to(lambda: [Path("a.txt").write_text("x"), os.write(1, b"x"), os.write(2, b"x"), _start_a_child()])
    pid = load_entry(made["entry"])["answer"][-1]
    assert capfd.readouterr() == ("", "")
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.05)


def test_a_running_program_is_killed_when_the_parent_exits(working_folder):
    ours, theirs = socket.socketpair()
    threading.Timer(0.2, ours.close).start()
    with theirs:
        source = SimpleNamespace(make_here=lambda index: time.sleep(600))
        assert problem_maker.make_in_fork(source, 0, theirs) is None


def failing_at(index: int, monkeypatch) -> None:
    """Make the generator fail at one problem."""
    make_here = ProblemSource.make_here

    def fail(source: ProblemSource, asked: int) -> Problem:
        if asked == index:
            raise isolated.ProblemNotMade("it cannot be made")
        return make_here(source, asked)

    monkeypatch.setattr(ProblemSource, "__getitem__", fail)


def test_a_failing_training_problem_is_replaced(monkeypatch):
    mixture = build_mixture([DatasetSpec("chain_sum")], seed=0, size=5)
    expected = [mixture[0], mixture.draw(1, attempt=1)]
    failing_at(1, monkeypatch)
    training = TrainingProblems(mixture, held_out=HeldOut())
    assert [training[index].problem for index in (0, 1)] == expected
    assert survey_spaces(mixture, HeldOut())[0].num_sampled == 4


def test_a_failing_evaluation_problem_is_an_error(monkeypatch):
    monkeypatch.setattr(isolated, "_ask", lambda line: {"error": "it exceeds 60 s of CPU time"})
    source = ProblemSource(DatasetSpec("codeio"), seed=42, size=100)
    with pytest.raises(ConfigError, match=r"dataset 'codeio' cannot make problem 17 of seed 42 \(it exceeds 60 s"):
        source[17]
