"""Trainings run side by side in real processes, at most once, and survive failures, limits and interrupts."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.side_by_side import Place, SideBySide, Work
from evidence.training_plan import Training

SUCCEED = "print('trained')"


def training(arm, seed=1, **fields):
    return Training(model="m", task="t", arm=arm, seed=seed, **fields)


class Bench:
    """Runs small programs in place of trainings, and keeps their records in a folder."""

    def __init__(self, folder, programs, **options):
        self.folder, self.programs = folder, programs
        self.options = {"places": [Place()] * 2, "grace_s": 5.0, "say": lambda line: None, **options}
        self.finished = []

    def scheduler(self, trainings):
        work = Work(
            stages=lambda each: [[sys.executable, "-c", code] for code in self.programs[each.arm]],
            finish=self.finish,
            is_finished=lambda each: each.record_path(self.folder / "results").exists(),
            run_dir=lambda each: self.folder / "runs" / each.name,
            seconds=lambda each: 1.0,
        )
        return SideBySide(trainings, work, **self.options)

    def finish(self, each, seconds):
        path = each.record_path(self.folder / "results")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.finished.append(each.name)


def test_a_finished_training_is_not_repeated(tmp_path):
    bench = Bench(tmp_path, {"a": [SUCCEED, SUCCEED], "b": [SUCCEED]})
    assert bench.scheduler([training("a")]).run()
    assert bench.scheduler([training("a"), training("b")]).run()
    assert bench.finished == ["t/a/seed_1", "t/b/seed_1"]
    assert (tmp_path / "runs" / "t/a/seed_1" / "commands.log").read_text() == "trained\ntrained\n"


def test_a_failure_stops_its_dependents_only(tmp_path):
    broken = training("broken")
    bench = Bench(
        tmp_path, {"broken": ["import sys; sys.exit('out of memory')"], "good": [SUCCEED], "child": [SUCCEED]}
    )
    scheduler = bench.scheduler([broken, training("child", needs=(broken,)), training("good")])
    assert not scheduler.run()
    assert bench.finished == ["t/good/seed_1"]
    assert "exit code 1\n    out of memory" in scheduler.failed["t/broken/seed_1"]
    assert scheduler.not_started == {"t/child/seed_1": "t/broken/seed_1 was not finished"}


# Fails while another training runs, and counts its tries.
CROWDED = """
import pathlib, sys, time
tries, other = pathlib.Path({folder!r}, "tries"), pathlib.Path({folder!r}, "other")
with tries.open("a") as file:
    file.write("x")
while len(tries.read_text()) == 1 and not other.exists():
    time.sleep(0.02)
sys.exit({message!r} if {always} or other.exists() else 0)
"""
OTHER = """
import pathlib, time
tries, other = pathlib.Path({folder!r}, "tries"), pathlib.Path({folder!r}, "other")
other.touch()
time.sleep(0.6)
other.unlink()
"""


def crowded_bench(folder, *, message="training ran out of memory", always=False, places):
    programs = {
        "crowded": [CROWDED.format(folder=str(folder), message=message, always=always)],
        "other": [OTHER.format(folder=str(folder))],
        "child": [SUCCEED],
    }
    return Bench(folder, programs, places=places)


def test_a_training_that_runs_out_of_memory_beside_another_is_tried_once_more_without_it(tmp_path):
    crowded = training("crowded")
    bench = crowded_bench(tmp_path, places=[Place({"CUDA_VISIBLE_DEVICES": "0"})] * 2)
    scheduler = bench.scheduler([crowded, training("child", needs=(crowded,)), training("other")])
    assert scheduler.run()
    assert bench.finished == ["t/other/seed_1", "t/crowded/seed_1", "t/child/seed_1"]
    assert not scheduler.failed and not scheduler.not_started


@pytest.mark.parametrize(
    ("case", "num_tries"), [({"always": True}, 2), ({"message": "no such file"}, 1), ({"gpus": "01"}, 1)]
)
def test_a_failure_that_has_another_cause_is_reported(tmp_path, case, num_tries):
    places = [Place({"CUDA_VISIBLE_DEVICES": gpu}) for gpu in case.pop("gpus", "00")]
    bench = crowded_bench(tmp_path, places=places, **case)
    scheduler = bench.scheduler([training("crowded"), training("other")])
    assert not scheduler.run()
    assert len((tmp_path / "tries").read_text()) == num_tries
    assert list(scheduler.failed) == ["t/crowded/seed_1"]


def test_commands_that_are_not_known_are_a_failure(tmp_path):
    bench = Bench(tmp_path, {"good": [SUCCEED]})

    def stages(each):
        raise ConfigError("the learning rate is missing")

    scheduler = bench.scheduler([training("a")])
    object.__setattr__(scheduler._work, "stages", stages)
    assert not scheduler.run()
    assert scheduler.failed == {"t/a/seed_1": "the learning rate is missing"}


@pytest.mark.parametrize("error", [ConfigError("lacks steps [3]"), KeyError("timing_s/step"), OSError("disk full")])
def test_a_run_without_a_record_does_not_stop_the_others(tmp_path, error):
    bench = Bench(tmp_path, {"incomplete": [SUCCEED], "good": [SUCCEED]}, places=[Place()])

    def finish(each, seconds):
        if each.arm == "incomplete":
            raise error
        bench.finish(each, seconds)

    scheduler = bench.scheduler([training("incomplete"), training("good")])
    object.__setattr__(scheduler._work, "finish", finish)
    assert not scheduler.run()
    assert bench.finished == ["t/good/seed_1"]
    assert str(error) in scheduler.failed["t/incomplete/seed_1"]


def test_a_training_waits_for_its_prerequisites(tmp_path):
    first = training("first")
    bench = Bench(tmp_path, {"first": ["import time; time.sleep(0.3)"], "second": [SUCCEED]})
    assert bench.scheduler([training("second", needs=(first,)), first]).run()
    assert bench.finished == ["t/first/seed_1", "t/second/seed_1"]


def test_trainings_share_the_places(tmp_path):
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(0.5)"
    places = [Place({"CUDA_VISIBLE_DEVICES": gpu}) for gpu in ("0", "1")]
    bench = Bench(tmp_path, {"a": [code]}, places=places)
    began = time.monotonic()
    assert bench.scheduler([training("a", seed) for seed in (1, 2)]).run()
    assert time.monotonic() - began < 1.5
    logs = {(tmp_path / "runs" / f"t/a/seed_{seed}" / "commands.log").read_text() for seed in (1, 2)}
    assert logs == {"0\n", "1\n"}


def test_a_training_that_takes_too_long_is_killed(tmp_path):
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    bench = Bench(tmp_path, {"slow": [stubborn], "good": [SUCCEED]}, training_limit_s=0.6, grace_s=0.3)
    scheduler = bench.scheduler([training("slow"), training("good")])
    assert not scheduler.run()
    assert scheduler.failed == {"t/slow/seed_1": "it took longer than 0.6 s"}
    assert bench.finished == ["t/good/seed_1"]


def test_nothing_starts_that_would_end_after_the_limit(tmp_path):
    bench = Bench(tmp_path, {"a": [SUCCEED]}, limit_s=0.5)
    scheduler = bench.scheduler([training("a")])
    assert scheduler.run()
    assert scheduler.not_started == {"t/a/seed_1": "each needs about 1 s, more than --limit-s leaves"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_trainings_and_the_next_start_continues(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path[:0] = [{str(PROJECT_ROOT)!r}, {str(PROJECT_ROOT / "tests" / "evidence")!r}]
        from evidence.side_by_side import interrupt_on_signals
        from test_side_by_side import Bench, training
        sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        interrupt_on_signals()
        Bench(Path({str(tmp_path)!r}), {{"a": [sleep]}}, say=print).scheduler([training("a")]).run()
        """)
    )
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "t/a/seed_1" / "commands.log"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=20)
    assert "stopping 1 trainings; the same command continues with the missing ones" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    bench = Bench(tmp_path, {"a": [SUCCEED]})
    assert bench.scheduler([training("a")]).run()
    assert bench.finished == ["t/a/seed_1"]
