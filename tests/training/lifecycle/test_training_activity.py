"""verl's timers set the phase of a run."""

from contextlib import contextmanager

import pytest

from rgtrain.training.lifecycle.training_activity import ACTIVITY, setting_phase


@contextmanager
def original_timer(name, timing_raw, color=None):
    timing_raw[name] = color
    yield


def test_a_phase_lasts_as_long_as_the_timer_and_has_our_name():
    timing = {}
    before = str(ACTIVITY)
    with setting_phase(original_timer)("old_log_prob", timing, color="blue"):
        assert "log-probs" in str(ACTIVITY)
    assert str(ACTIVITY) == before
    assert timing == {"old_log_prob": "blue"}


def test_a_phase_that_fails_raises_its_own_error():
    with pytest.raises(KeyError, match="lost"), setting_phase(original_timer)("gen", {}):
        raise KeyError("lost")
