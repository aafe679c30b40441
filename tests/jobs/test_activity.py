"""An activity names the current phase, step and place, and counts every sign of progress."""

import pytest

from rgtrain.jobs.activity import Activity


@pytest.fixture
def activity() -> Activity:
    return Activity({"gen": "generate"})


def test_a_job_starts_in_a_phase_without_a_step(activity):
    assert (str(activity), activity.place()) == ("start", "")


def test_a_phase_is_named_by_its_label_and_its_step(activity):
    activity.step = 3
    with activity.within("gen"):
        assert str(activity) == "generate of step 3"


def test_a_phase_without_a_label_is_printed_under_its_own_name(activity):
    with activity.within("unknown_timer"):
        assert str(activity) == "unknown_timer"


def test_the_outer_phase_is_current_again_after_an_inner_phase(activity):
    with activity.within("step"):
        with activity.within("gen"):
            assert activity.phase == "gen"
        assert activity.phase == "step"
    assert activity.phase == "start"


def test_the_start_and_the_end_of_a_phase_count_as_progress(activity):
    with activity.within("gen"):
        assert activity.num_moves == 1
    assert activity.num_moves == 2


def test_a_failed_phase_counts_as_progress(activity):
    with pytest.raises(ValueError), activity.within("gen"):
        raise ValueError
    assert activity.num_moves == 2


def test_progress_without_a_place_keeps_the_last_place(activity):
    activity.moved("completion 1 of 2")
    activity.moved()
    assert (activity.place(), activity.num_moves) == ("completion 1 of 2", 2)


def test_a_place_is_forgotten_after_its_phase(activity):
    with activity.within("gen"):
        activity.moved("completion 1 of 2")
        assert activity.place() == "completion 1 of 2"
    assert activity.place() == ""


def test_a_phase_starts_without_the_place_of_the_outer_phase(activity):
    activity.moved("completion 1 of 2")
    with activity.within("gen"):
        assert activity.place() == ""


def test_a_failed_phase_keeps_its_name_and_place(activity):
    with pytest.raises(ValueError), activity.within("gen"):
        activity.moved("completion 1 of 2")
        raise ValueError
    assert (str(activity), activity.place()) == ("generate", "completion 1 of 2")


def test_sources_are_named_only_if_they_are_at_different_places(activity):
    for rank in range(3):
        activity.moved("micro-batch 3 of 22", source=f"worker {rank}")
    assert activity.place() == "micro-batch 3 of 22"
    activity.moved("micro-batch 4 of 22", source="worker 0")
    activity.moved("micro-batch 4 of 22", source="worker 2")
    assert activity.place() == "micro-batch 4 of 22 (worker 0, worker 2); micro-batch 3 of 22 (worker 1)"


def test_a_report_about_many_sources_stays_short(activity):
    for rank in range(100):
        activity.moved(f"weight {rank % 10}", source=f"worker {rank}")
    assert activity.place() == (
        "weight 0 (worker 0, worker 10, worker 20); weight 1 (worker 1, worker 11, worker 21); "
        "weight 2 (worker 2, worker 12, worker 22)"
    )
