"""Every level of a ladder makes problems, differs from the others, and follows Reasoning Gym's attributes."""

import pytest
from reasoning_gym.factory import CURRICULA

from rgtrain.curriculum.ladder import build_ladder
from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import DatasetSpec, ProblemSource


def test_a_range_covers_only_its_level():
    ladder = build_ladder(DatasetSpec("spell_backward"))
    lengths = [(level["min_word_len"], level["max_word_len"]) for level in ladder.levels]
    # No word has 11 letters, so the last level includes the one below.
    assert lengths == [(3, 3), (5, 5), (7, 7), (9, 9), (9, 11)]


def test_widening_ranges_begin_at_the_lowest_value():
    ladder = build_ladder(DatasetSpec("spell_backward"), start={"word_len": 1}, ranges="widening")
    assert [(level["min_word_len"], level["max_word_len"]) for level in ladder.levels] == [
        (3, 5),
        (3, 7),
        (3, 9),
        (3, 11),
    ]


def test_attributes_rise_together_from_their_start_and_others_stay():
    spec = DatasetSpec("knights_knaves", params={"width_constraint": 3})
    ladder = build_ladder(spec, start={"n_people": 1, "depth_constraint": 0})
    assert [(level["n_people"], level["depth_constraint"], level["width_constraint"]) for level in ladder.levels] == [
        (3, 2, 3),
        (4, 3, 3),
        (5, 3, 3),
    ]


def test_levels_without_problems_are_skipped():
    # The dataset refuses rotations over 25.
    ladder = build_ladder(DatasetSpec("caesar_cipher"))
    assert all(level["max_rotation"] <= 25 for level in ladder.levels)


def test_the_number_of_levels_can_be_limited():
    assert len(build_ladder(DatasetSpec("spell_backward"), num_levels=3)) == 3


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (DatasetSpec("gsm_symbolic"), {}, "'gsm_symbolic' has no curriculum"),
        (
            DatasetSpec("spell_backward"),
            {"start": {"word_length": 0}},
            "no attribute 'word_length'; did you mean 'word_len'",
        ),
        (DatasetSpec("spell_backward"), {"start": {"word_len": 9}}, "starts at 9; give a level from 0 to 4"),
        (DatasetSpec("spell_backward"), {"start": {"word_len": 4}}, "has 0 usable levels"),
        (DatasetSpec("spell_backward"), {"ranges": "wide"}, "has ranges 'wide'; write level or widening"),
        (DatasetSpec("spell_backward", params={"min_word_len": 3}), {}, "remove the parameters from the mixture"),
    ],
)
def test_mistakes_are_reported(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        build_ladder(spec, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", sorted(CURRICULA))
def test_every_dataset_makes_problems_at_every_level(dataset):
    ladder = build_ladder(DatasetSpec(dataset))
    for level in ladder.levels:
        assert ProblemSource(DatasetSpec(dataset, params=level), seed=0, size=4)[0].question
