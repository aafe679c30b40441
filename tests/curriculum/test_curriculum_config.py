import pytest
from support.curricula import FIXED, SPECS, small_curriculum

from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.curriculum.policies import Uniform
from rgtrain.errors import ConfigError


def test_a_policy_of_ones_own():
    curriculum = small_curriculum({"name": "pkg://rgtrain.curriculum.policies.Uniform"})
    assert isinstance(curriculum.policies["spell_backward"], Uniform)


@pytest.mark.parametrize(
    ("raw", "mixture_policy", "says"),
    [
        ({"policy": {"name": "treshold"}, "datasets": {"spell_backward": {}}}, FIXED, "did you mean 'threshold'"),
        ({"policy": {"name": "frontier", "windw": 3}, "datasets": {"spell_backward": {}}}, FIXED, "no option 'windw'"),
        ({"policy": {"name": "frontier"}, "datasets": {"gcd": {}}}, FIXED, "'gcd', which data.mixture hasn't"),
        (
            {"policy": {"name": "frontier"}, "datasets": {"spell_backward": {"levels": 1}}},
            FIXED,
            "it takes only 'start'",
        ),
        ({"policy": {"name": "pkg://nowhere.Policy"}, "datasets": {"spell_backward": {}}}, FIXED, "cannot be imported"),
        ({"policy": {"name": "frontier"}, "datasets": {}}, {"name": "adaptive", "least": 2}, "give least <= 1 <= most"),
        ({"policy": {"name": "frontier"}, "datasets": {}}, {"name": "equal"}, "unknown mixture policy 'equal'"),
    ],
)
def test_mistakes_are_named(raw, mixture_policy, says):
    with pytest.raises(ConfigError, match=says):
        build_curriculum(SPECS, seed=1, curriculum=raw, mixture_policy=mixture_policy)
