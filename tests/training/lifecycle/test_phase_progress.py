"""Long phases show their progress in a few lines, and short ones nothing."""

import time

import pytest
from support.experiments import small_run

from rgtrain.jobs import activity as activity_module
from rgtrain.training.lifecycle.phase_progress import PhaseProgress, phase_line, phases_shown, update_rounds
from rgtrain.training.lifecycle.training_activity import PHASES
from rgtrain.training.rollout.groups import WorkerPlace


@pytest.fixture
def job(monkeypatch):
    return Job(monkeypatch)


class Job:
    """An activity with a clock, and the lines that it shows."""

    def __init__(self, monkeypatch, **num_rounds: int):
        self.now = 1000.0
        monkeypatch.setattr(activity_module.time, "monotonic", lambda: self.now)
        self.activity = activity_module.Activity(PHASES)
        self.activity.step = 3
        self.progress = PhaseProgress(self.activity, num_rounds={"update_actor": 4})
        self.lines: list[str] = []

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            if line := self.progress.line(self.now):
                self.lines.append(line)

    def report(self, stage: str, done: int, total: int | None, *, worker: int = 0) -> None:
        place = WorkerPlace(worker, stage, done, total)
        self.activity.moved(str(place), source=f"worker {worker}", share=place.share)


def test_a_phase_of_a_minute_shows_nothing(job):
    with job.activity.within("gen"):
        for done in range(59):
            job.report("completion", done, 59)
            job.wait(1)
    assert job.lines == []


def test_generation_is_shown_after_a_minute_and_at_each_quarter(job):
    with job.activity.within("gen"):
        for done in range(1, 601):
            job.wait(1)
            job.report("completion", done, 600)
    assert job.lines == [
        "generate of step 3: 10% after 60 s (completion 59 of 600)",
        "generate of step 3: 25% after 3 min (completion 150 of 600)",
        "generate of step 3: 50% after 5 min (completion 300 of 600)",
        "generate of step 3: 75% after 8 min (completion 450 of 600)",
    ]


def test_an_update_counts_micro_batches_of_all_mini_batches(job):
    with job.activity.within("update_actor"):
        for _ in range(4):
            for done in range(1, 11):
                job.wait(10)
                job.report("micro-batch", done, 10)
    assert [line.split(" after ")[0] for line in job.lines] == [
        "update of step 3: 12%",
        "update of step 3: 25%",
        "update of step 3: 50%",
        "update of step 3: 75%",
    ]


def test_several_workers_show_their_mean_share(job):
    with job.activity.within("testing"):
        job.wait(2)
        job.report("completion", 10, 40, worker=0)
        job.report("completion", 20, 40, worker=1)
        job.wait(60)
    assert job.lines == ["validate of step 3: 38% after 60 s"]


def test_a_phase_of_unknown_length_is_shown_at_doubled_times(job):
    with job.activity.within("save_checkpoint"):
        job.wait(600)
    assert [line.split(" after ")[1] for line in job.lines] == ["60 s", "2 min", "4 min", "8 min"]
    assert job.lines[0] == "save of step 3: still running after 60 s"


def test_each_phase_begins_anew_and_the_time_between_phases_shows_nothing(job):
    with job.activity.within("step"):
        job.wait(100)
        for _ in range(5):
            with job.activity.within("gen"):
                job.wait(50)
    assert job.lines == []


def test_a_late_report_of_the_previous_phase_is_no_round(job):
    with job.activity.within("old_log_prob"):
        job.wait(2)
    with job.activity.within("update_actor"):
        job.report("micro-batch", 22, 22)
        job.wait(2)
        job.report("micro-batch", 1, 22)
        assert job.activity.num_rounds() == pytest.approx(1 / 22)


def test_more_rounds_than_expected_show_no_share(job):
    with job.activity.within("gen"):
        job.wait(2)
        for done in (60, 10):
            job.report("completion", done, 64)
        job.wait(60)
    assert job.lines == ["generate of step 3: still running after 60 s (completion 10 of 64)"]


@pytest.mark.parametrize("total", [None, 0])
def test_a_worker_that_does_not_know_its_units_has_no_share(total):
    assert WorkerPlace(0, "weight", 3, total).share is None


def test_the_rounds_of_an_update_are_its_mini_batches(tmp_path):
    changes = ("data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=16")
    config = small_run(tmp_path, *changes, "actor_rollout_ref.actor.ppo_epochs=2", "critic.ppo_epochs=1")
    assert update_rounds(config) == {"update_actor": 8, "update_critic": 4}


def test_workers_at_different_places_are_not_listed():
    line = phase_line("generate", seconds=61, share=None, place="completion 1 (worker 0); completion 2 (worker 1)")
    assert line == "generate: still running after 61 s"


def test_a_thread_shows_the_lines_until_the_block_ends(monkeypatch):
    from rgtrain.training.lifecycle import phase_progress

    monkeypatch.setattr(phase_progress, "_LONG_SECONDS", 0.02)
    monkeypatch.setattr(phase_progress, "_LOOK_EVERY_SECONDS", 0.01)
    said: list[str] = []
    activity = activity_module.Activity(PHASES)
    with phases_shown(activity, num_rounds={}, announce=said.append), activity.within("gen"):
        while not said:
            time.sleep(0.01)
    assert said[0].startswith("generate: still running after ")
