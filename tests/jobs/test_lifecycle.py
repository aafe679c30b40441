"""A job that moves is left alone, and one that stands still is reported and then ended."""

import threading
import time

import pytest

from rgtrain.jobs import watchdog
from rgtrain.jobs.activity import Activity
from rgtrain.jobs.watchdog import EXIT_HUNG, watched


@pytest.fixture
def activity(monkeypatch) -> Activity:
    monkeypatch.setattr(watchdog, "_LOOK_EVERY_SECONDS", 0.05)
    return Activity({"gen": "generate"})


def test_a_phase_that_stands_still_is_reported_and_then_ended(activity, capfd):
    said, endings, ended = [], [], threading.Event()

    def end(reason: str, exit_code: int) -> None:
        endings.append((reason, exit_code))
        ended.set()

    with (
        watched(activity, report_after_s=1, end_after_s=2, end=end, announce=said.append),
        activity.within("gen"),
    ):
        activity.step = 3
        for number in range(20):
            activity.moved(f"completion {number} of 40")
            time.sleep(0.1)
        assert endings == [] and said == []
        assert ended.wait(60)
    place = "at completion 19 of 40"
    reason = f"ended: generate of step 3 stood still for 2 s {place} (trainer.watchdog.end_after_s)"
    assert endings == [(reason, EXIT_HUNG)]
    assert said == [f"generate of step 3 has stood still for 1 s {place}; stack traces are in train.log"]
    traces = capfd.readouterr().err
    assert "test_lifecycle.py" in traces and "most recent call first" in traces


def test_a_limit_of_none_is_never_reached(activity):
    said = []
    with watched(activity, report_after_s=None, end_after_s=None, end=pytest.fail, announce=said.append):
        time.sleep(0.3)
    assert said == []


def test_a_place_belongs_to_its_phase(activity):
    with activity.within("gen"):
        activity.moved("completion 1 of 2")
        assert activity.place() == "completion 1 of 2"
    assert activity.place() == ""


def test_a_failed_phase_keeps_its_name_and_place(activity):
    with pytest.raises(ValueError), activity.within("gen"):
        activity.moved("completion 1 of 2")
        raise ValueError
    assert (str(activity), activity.place()) == ("generate", "completion 1 of 2")


def test_sources_at_different_places_are_named_and_those_at_one_place_are_not(activity):
    for rank in range(3):
        activity.moved("micro-batch 3 of 22", source=f"worker {rank}")
    assert activity.place() == "micro-batch 3 of 22"
    activity.moved("micro-batch 4 of 22", source="worker 0")
    activity.moved("micro-batch 4 of 22", source="worker 2")
    assert activity.place() == "micro-batch 4 of 22 (worker 0, worker 2); micro-batch 3 of 22 (worker 1)"
