"""Every level of a ladder makes problems, differs from the others, and is what Reasoning Gym's attributes say."""

import pytest
from reasoning_gym.factory import CURRICULA

from rgtrain.curriculum.ladder import build_ladder
from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import DatasetSpec, ProblemSource


def test_a_range_is_held_at_its_level():
    ladder = build_ladder(DatasetSpec("spell_backward"))
    lengths = [(level["min_word_len"], level["max_word_len"]) for level in ladder.levels]
    # No word has 11 letters, so that the last level reaches down to the one below.
    assert lengths == [(3, 3), (5, 5), (7, 7), (9, 9), (9, 11)]


def test_attributes_rise_together_from_where_they_start_and_others_stay():
    spec = DatasetSpec("knights_knaves", params={"width_constraint": 3})
    ladder = build_ladder(spec, start={"n_people": 1, "depth_constraint": 0})
    assert [(level["n_people"], level["depth_constraint"], level["width_constraint"]) for level in ladder.levels] == [
        (3, 2, 3),
        (4, 3, 3),
        (5, 3, 3),
    ]


def test_levels_at_which_the_dataset_makes_nothing_are_left_out():
    # Rotations over 25 are refused.
    ladder = build_ladder(DatasetSpec("caesar_cipher"))
    assert all(level["max_rotation"] <= 25 for level in ladder.levels)


def test_only_the_first_levels_where_asked():
    assert len(build_ladder(DatasetSpec("spell_backward"), num_levels=3)) == 3


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        (DatasetSpec("gsm_symbolic"), {}, "'gsm_symbolic' has no curriculum"),
        (
            DatasetSpec("spell_backward"),
            {"start": {"word_length": 0}},
            "no attribute 'word_length'; did you mean 'word_len'",
        ),
        (DatasetSpec("spell_backward"), {"start": {"word_len": 9}}, "starts at 9: its levels go from 0 to 4"),
        (DatasetSpec("spell_backward"), {"start": {"word_len": 4}}, "has 0 usable levels"),
        (DatasetSpec("spell_backward", params={"min_word_len": 3}), {}, "leave them out of the mixture"),
    ],
)
def test_mistakes_are_named(spec, options, says):
    with pytest.raises(ConfigError, match=says):
        build_ladder(spec, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", sorted(CURRICULA))
def test_every_dataset_makes_problems_at_every_level(dataset):
    ladder = build_ladder(DatasetSpec(dataset))
    for level in ladder.levels:
        assert ProblemSource(DatasetSpec(dataset, params=level), seed=0, size=4)[0].question
