import pytest
from support.curricula import FIXED, SPECS, small_curriculum

from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.curriculum.policies import Uniform
from rgtrain.errors import ConfigError


def test_a_policy_can_be_a_plugin():
    curriculum = small_curriculum({"name": "pkg://rgtrain.curriculum.policies.Uniform"})
    assert isinstance(curriculum.policies["spell_backward"], Uniform)


@pytest.mark.parametrize(
    ("raw", "mixture_policy", "message"),
    [
        ({"policy": {"name": "treshold"}, "datasets": {"spell_backward": {}}}, FIXED, "did you mean 'threshold'"),
        ({"policy": {"name": "frontier", "windw": 3}, "datasets": {"spell_backward": {}}}, FIXED, "no option 'windw'"),
        ({"policy": {"name": "frontier"}, "datasets": {"gcd": {}}}, FIXED, "'gcd', which is not in data.mixture"),
        (
            {"policy": {"name": "frontier"}, "datasets": {"spell_backward": {"levels": 1}}},
            FIXED,
            "use only 'start'",
        ),
        ({"policy": {"name": "pkg://nowhere.Policy"}, "datasets": {"spell_backward": {}}}, FIXED, "cannot be imported"),
        (
            {"policy": {"name": "pkg://random.Random"}, "datasets": {"spell_backward": {}}},
            FIXED,
            r"lacks the methods draw\(rng\), observe\(level, successes\), end_step\(\)",
        ),
        (
            {"policy": {"name": "frontier"}, "datasets": {}},
            {"name": "adaptive", "least": 2},
            "give 0 < least <= 1 <= most",
        ),
        ({"policy": {"name": "frontier"}, "datasets": {}}, {"name": "equal"}, "unknown mixture policy 'equal'"),
    ],
)
def test_mistakes_are_reported(raw, mixture_policy, message):
    with pytest.raises(ConfigError, match=message):
        build_curriculum(SPECS, seed=1, curriculum=raw, mixture_policy=mixture_policy)
