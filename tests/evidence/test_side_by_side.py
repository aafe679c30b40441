"""Trainings run side by side in real processes, at most once, and survive failures, limits and interrupts."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.side_by_side import Place, SideBySide, Work, _locked
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
        self.num_on_gpu = {}

    def scheduler(self, trainings):
        work = Work(
            stages=lambda each: [[sys.executable, "-c", code] for code in self.programs[each.arm]],
            finish=self.finish,
            is_finished=lambda each: each.record_path(self.folder / "results").exists(),
            run_dir=lambda each: self.folder / "runs" / each.name,
            seconds=lambda each: 1.0,
        )
        return SideBySide(trainings, work, **self.options)

    def finish(self, each, seconds, num_on_gpu):
        self.num_on_gpu[each.name] = num_on_gpu
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


# Fails in its first tries with a message, and writes a line for each try: the number of others that ran beside it.
FAILING = """
import pathlib, sys
folder = pathlib.Path({folder!r})
tries = folder / "tries"
with tries.open("a") as file:
    file.write(f"{{len(list(folder.glob('other_*')))}}\\n")
sys.exit({message!r} if len(tries.read_text().splitlines()) <= {num_failures} else 0)
"""
# Runs until the number of tries and that of programs that have ended are reached, or for a time.
OTHER = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
mine, tries = folder / f"other_{{os.getpid()}}", folder / "tries"
mine.touch()
ends_at = time.monotonic() + {most_s}
while time.monotonic() < ends_at and not (tries.exists() and len(tries.read_text().splitlines()) >= {num_tries}):
    time.sleep(0.02)
time.sleep(0.3)
mine.unlink()
"""
ON_GPU = Place({"CUDA_VISIBLE_DEVICES": "0"})


def failing_bench(folder, message, *, num_failures, num_places, until_tries=1, most_s=30.0):
    """Return a bench with a failing training, and others that run until it has been tried some times."""
    programs = {
        "failing": [FAILING.format(folder=str(folder), message=message, num_failures=num_failures)],
        "other": [OTHER.format(folder=str(folder), num_tries=until_tries, most_s=most_s)],
        "late": [SUCCEED],
        "child": [SUCCEED],
    }
    return Bench(folder, programs, places=[ON_GPU] * num_places)


def others_at_each_try(folder):
    return [int(line) for line in (folder / "tries").read_text().splitlines()]


PORT_TAKEN = "DistNetworkError: port: 37873, code: -98, name: EADDRINUSE, message: address already in use"


def test_a_training_whose_port_was_taken_starts_again_at_once(tmp_path):
    failing = training("failing")
    bench = failing_bench(tmp_path, PORT_TAKEN, num_failures=1, num_places=2, until_tries=2)
    scheduler = bench.scheduler(
        [training("other"), failing, training("child", needs=(failing,)), *(training("late", seed) for seed in (1, 2))]
    )
    assert scheduler.run()
    # The other one runs until the second try, which comes before trainings that have waited longer.
    assert others_at_each_try(tmp_path)[1:] == [1]
    assert bench.finished.index("t/failing/seed_1") < bench.finished.index("t/late/seed_1")
    assert "t/child/seed_1" in bench.finished
    assert not scheduler.failed


def test_a_training_that_runs_out_of_memory_starts_again_at_once_and_fewer_share_its_gpu(tmp_path):
    bench = failing_bench(tmp_path, "CUDA out of memory", num_failures=1, num_places=3)
    said: list[str] = []
    bench.options["say"] = said.append
    others = [training("other", seed) for seed in (1, 2)]
    bench.programs["late"] = [OTHER.format(folder=str(tmp_path), num_tries=9, most_s=0.6)]
    bench.programs["failing"].insert(0, "import time; time.sleep(0.3)")
    scheduler = bench.scheduler([*others, training("failing"), *(training("late", seed) for seed in (1, 2, 3))])
    assert scheduler.run()
    assert any("out of memory beside up to 2 others, starts again; 2 at a time on its GPU" in line for line in said)
    assert len(others_at_each_try(tmp_path)) == 2
    assert max(int(re.search(r"(\d+) running", line)[1]) for line in said[1:]) <= 2
    assert bench.finished.index("t/failing/seed_1") < bench.finished.index("t/late/seed_3")
    assert bench.num_on_gpu["t/late/seed_3"] <= 2 < bench.num_on_gpu["t/other/seed_1"]


def test_a_training_that_always_runs_out_of_memory_does_not_empty_all_gpus(tmp_path):
    places = [Place({"CUDA_VISIBLE_DEVICES": str(number)}) for number in range(3) for _ in range(3)]
    programs = {
        "hungry": ["import sys, time; time.sleep(0.1); sys.exit('CUDA out of memory')"],
        "good": ["import time; time.sleep(0.4)"],
    }
    bench = Bench(tmp_path, programs, places=places)
    scheduler = bench.scheduler(
        [training("good"), training("hungry"), *(training("good", seed) for seed in range(2, 25))]
    )
    assert not scheduler.run()
    assert list(scheduler.failed) == ["t/hungry/seed_1"]
    assert len(bench.finished) == 24
    assert len(scheduler._places) >= len(places) - 2


def test_many_that_run_out_of_memory_at_the_same_time_give_up_one_place(tmp_path):
    once = (
        "import pathlib, sys, time; file = pathlib.Path({!r}); time.sleep(0.5); first = not file.exists(); file.touch()"
    )
    programs = {
        arm: [once.format(str(tmp_path / arm)) + "; sys.exit('CUDA out of memory' if first else 0)"] for arm in "ab"
    }
    bench = Bench(tmp_path, programs | {"c": ["import time; time.sleep(1.5)"]}, places=[ON_GPU] * 3)
    scheduler = bench.scheduler([training(arm) for arm in "abc"])
    assert scheduler.run()
    assert len(scheduler._places) == 2


def test_two_calls_share_a_folder_and_run_each_training_once(tmp_path):
    slow = training("slow")
    tries = tmp_path / "tries"
    program = f"import pathlib, time; pathlib.Path({str(tries)!r}).open('a').write('x'); time.sleep(1)"
    programs = {"slow": [program], "child": [SUCCEED]}
    bench, other = Bench(tmp_path, programs, places=[Place()]), Bench(tmp_path, programs, places=[Place()])
    with ThreadPoolExecutor() as pool:
        first = pool.submit(bench.scheduler([slow]).run)
        while not tries.exists():
            time.sleep(0.02)
        assert other.scheduler([slow, training("child", needs=(slow,))]).run()
        assert first.result()
    assert tries.read_text() == "x"
    assert (bench.finished, other.finished) == (["t/slow/seed_1"], ["t/child/seed_1"])


def test_a_call_waits_for_the_training_of_another_one_and_takes_over_if_that_fails(tmp_path):
    slow, started = training("slow"), tmp_path / "started"
    program = f"import pathlib, sys, time; file = pathlib.Path({str(started)!r}); first = not file.exists()"
    program += "; file.touch(); time.sleep(1); sys.exit(first)"
    said: list[str] = []
    # The first call has no time to try again.
    first = Bench(tmp_path, {"slow": [program]}, places=[Place()], limit_s=1.5)
    other = Bench(tmp_path, {"slow": [program]}, places=[Place()], say=said.append)
    with ThreadPoolExecutor() as pool:
        failing = pool.submit(first.scheduler([slow]).run)
        while not started.exists():
            time.sleep(0.02)
        assert other.scheduler([slow]).run()
        assert not failing.result()
    assert said[0] == "waiting for trainings of another call"
    assert other.finished == ["t/slow/seed_1"]


def test_a_training_of_another_call_is_not_reported_for_lack_of_time(tmp_path):
    slow, started = training("slow"), tmp_path / "started"
    program = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(1.5)"
    first = Bench(tmp_path, {"slow": [program]}, places=[Place()])
    other = Bench(tmp_path, {"slow": [program]}, places=[Place()], limit_s=0.1)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(first.scheduler([slow]).run)
        while not started.exists():
            time.sleep(0.02)
        scheduler = other.scheduler([slow])
        assert scheduler.run() and running.result()
    assert not scheduler.not_started and not scheduler.failed


def test_the_training_of_a_killed_call_keeps_its_lock(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path[:0] = [{str(PROJECT_ROOT)!r}, {str(PROJECT_ROOT / "tests" / "evidence")!r}]
        from test_side_by_side import Bench, training
        sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        Bench(Path({str(tmp_path)!r}), {{"slow": [sleep]}}).scheduler([training("slow")]).run()
        """)
    )
    process = subprocess.Popen([sys.executable, program])
    log = tmp_path / "runs" / "t/slow/seed_1" / "commands.log"
    while not (log.exists() and log.read_text().strip()):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert _locked(log.parent) is None
    os.kill(int(log.read_text()), signal.SIGKILL)
    ends_at = time.monotonic() + 10
    while (lock := _locked(log.parent)) is None and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert lock is not None


@pytest.mark.parametrize(("message", "num_tries"), [("no such file", 2), ("out of memory", 3), (PORT_TAKEN, 3)])
def test_a_training_that_fails_at_every_try_is_reported(tmp_path, message, num_tries):
    bench = failing_bench(tmp_path, message, num_failures=9, num_places=2, most_s=0.3)
    failing = training("failing")
    scheduler = bench.scheduler([failing, training("other"), training("child", needs=(failing,))])
    assert not scheduler.run()
    assert len(others_at_each_try(tmp_path)) == num_tries
    assert list(scheduler.failed) == ["t/failing/seed_1"]
    assert list(scheduler.not_started) == ["t/child/seed_1"]


def test_any_failure_is_tried_again_after_all_that_can_start(tmp_path):
    bench = failing_bench(tmp_path, "no such file", num_failures=1, num_places=1)
    failing = training("failing")
    scheduler = bench.scheduler([failing, training("late"), training("child", needs=(failing,))])
    assert scheduler.run()
    assert bench.finished == ["t/late/seed_1", "t/failing/seed_1", "t/child/seed_1"]


@pytest.mark.parametrize("message", ["no such file", "out of memory", PORT_TAKEN])
def test_a_failure_is_not_tried_again_without_time(tmp_path, message):
    bench = failing_bench(tmp_path, message, num_failures=1, num_places=1)
    bench.programs["failing"][0] = "import time; time.sleep(1.2)\n" + bench.programs["failing"][0]
    bench.options["limit_s"] = 1.8
    scheduler = bench.scheduler([training("failing")])
    assert not scheduler.run()
    assert len(others_at_each_try(tmp_path)) == 1
    assert message in scheduler.failed["t/failing/seed_1"]


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

    def finish(each, seconds, num_on_gpu):
        if each.arm == "incomplete":
            raise error
        bench.finish(each, seconds, num_on_gpu)

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
    finish_if_complete(bench)
    (tmp_path / "complete").touch()
    scheduler = bench.scheduler([training("slow"), training("good")])
    assert not scheduler.run()
    assert scheduler.failed == {"t/slow/seed_1": "it took longer than 0.6 s"}
    assert bench.finished == ["t/good/seed_1"]


def test_nothing_starts_that_could_end_after_the_limit(tmp_path):
    bench = Bench(tmp_path, {"a": [SUCCEED]}, limit_s=1.1)
    scheduler = bench.scheduler([training("a")])
    assert scheduler.run()
    assert scheduler.not_started == {"t/a/seed_1": "each needs up to 1.2 s, more than --limit-s leaves"}


# Writes everything, as the last program of a training does, and then takes long to end.
COMPLETE = """
import pathlib, time
pathlib.Path({folder!r}, "complete").touch()
print("report: report.html", flush=True)
time.sleep(60)
"""


def finish_if_complete(bench):
    """Let a training have a record only if its folder is complete, as a run without its evaluation has none."""
    finish = bench.finish

    def checked(each, seconds, num_on_gpu):
        if not (bench.folder / "complete").exists() or each.arm in ("running", "slow"):
            raise ConfigError(f"{each.name} lacks the evaluation")
        finish(each, seconds, num_on_gpu)

    bench.finish = checked


def test_a_complete_training_that_reaches_its_limit_while_it_ends_has_a_record(tmp_path):
    bench = Bench(tmp_path, {"a": [COMPLETE.format(folder=str(tmp_path))]}, training_limit_s=1.0)
    finish_if_complete(bench)
    scheduler = bench.scheduler([training("a")])
    assert scheduler.run()
    assert bench.finished == ["t/a/seed_1"]
    assert not scheduler.failed


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)])
def test_an_interrupt_stops_the_trainings_and_the_next_start_continues(tmp_path, numbers):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path[:0] = [{str(PROJECT_ROOT)!r}, {str(PROJECT_ROOT / "tests" / "evidence")!r}]
        from evidence.side_by_side import Place, interrupt_on_signals
        from test_side_by_side import COMPLETE, Bench, finish_if_complete, training
        sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        complete = COMPLETE.format(folder={str(tmp_path)!r})
        # The first of two stages is complete, which makes no record.
        programs = {{"running": [sleep], "complete": [complete], "first_stage": [complete, sleep]}}
        interrupt_on_signals()
        bench = Bench(Path({str(tmp_path)!r}), programs, places=[Place()] * 3, say=print)
        finish_if_complete(bench)
        bench.scheduler([training(arm) for arm in programs]).run()
        """)
    )
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = [tmp_path / "runs" / f"t/{arm}/seed_1" / "commands.log" for arm in ("running", "complete", "first_stage")]
    while not all(log.exists() and log.read_text() for log in logs):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    printed, _ = process.communicate(timeout=20)
    assert "stopping 3 trainings; the same command continues with the missing ones" in printed
    assert "t/complete/seed_1: done in" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(int(logs[0].read_text()), 0)
    bench = Bench(tmp_path, {arm: [SUCCEED] for arm in ("running", "complete", "first_stage")})
    assert bench.scheduler([training(arm) for arm in bench.programs]).run()
    assert sorted(bench.finished) == ["t/first_stage/seed_1", "t/running/seed_1"]


def test_an_interrupt_while_a_record_is_written_does_not_lose_it(tmp_path):
    bench = Bench(tmp_path, {"a": [SUCCEED]})
    finish, calls = bench.finish, []

    def interrupted_once(each, seconds, num_on_gpu):
        calls.append(each.name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        finish(each, seconds, num_on_gpu)

    bench.finish = interrupted_once
    with pytest.raises(KeyboardInterrupt):
        bench.scheduler([training("a")]).run()
    assert bench.finished == ["t/a/seed_1"]
