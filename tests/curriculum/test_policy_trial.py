"""Own curriculum and mixture policies are tried when the configuration is read, and errors say what to correct."""

import random
import sys
from types import ModuleType

import pytest
from support.curricula import FIXED, SPECS, group, small_curriculum

from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.curriculum.policies import Threshold, Uniform
from rgtrain.curriculum.weights import FixedWeights
from rgtrain.errors import ConfigError


class Climb(Uniform):
    """A sound policy with an option, a state and a metric."""

    def __init__(self, *, num_levels: int, patience: int = 2):
        super().__init__(num_levels=num_levels)
        self.patience, self.level, self.solved = patience, 0, 0

    def draw(self, rng):
        return rng.randint(0, self.level)

    def observe(self, level, successes):
        self.solved += min(successes) == 1
        if self.solved >= self.patience:
            self.level, self.solved = min(self.level + 1, self.num_levels - 1), 0

    def state_dict(self):
        return vars(self)

    def load_state_dict(self, state):
        vars(self).update(state)

    def metrics(self):
        return {"level": self.level}


class NoState(Climb):
    def load_state_dict(self, state):
        pass


class HalfState(Climb):
    def state_dict(self):
        return {"level": self.level}


class TooHigh(Climb):
    def draw(self, rng):
        return self.level

    def observe(self, level, successes):
        self.level += min(successes) == 1


class TooLow(Climb):
    def draw(self, rng):
        return -1


class Shares(FixedWeights):
    """A sound mixture policy with an option and a state."""

    def __init__(self, weights, step: float = 0.1):
        super().__init__(weights)
        self.step = step

    def observe(self, dataset, *, has_signal):
        self._weights[dataset] += self.step * has_signal

    def state_dict(self):
        return dict(self._weights)

    def load_state_dict(self, state):
        self._weights = dict(state)


def changed(base: type, **methods) -> type:
    return type("Own", (base,), methods)


def raising(self, *arguments):
    raise KeyError("level")


async def awaited(self, rng):
    return 0


POLICIES = {
    "is a function; name a class as in rgtrain/curriculum/policies.py": lambda num_levels: Uniform(num_levels=3),
    r"lacks the methods end_step\(\); see": changed(Uniform, end_step=None),
    r"has observe\(self, level\), but it is called as observe\(level, successes\)": changed(
        Uniform, observe=lambda self, level: None
    ),
    r"has draw\(self\), but it is called as draw\(rng\)": changed(Uniform, draw=lambda self: 0),
    r"has metrics\(self, step\), but it is called as metrics\(\)": changed(Uniform, metrics=lambda self, step: {}),
    "has an asynchronous method draw": changed(Uniform, draw=awaited),
    "made with the argument num_levels, which its constructor lacks": changed(Uniform, __init__=lambda self: None),
    "fails in its constructor": changed(Uniform, __init__=lambda self, *, num_levels: raising(self)),
    r"fails in observe \(KeyError: 'level'\)": changed(Uniform, observe=raising),
    "fails in end_step": changed(Uniform, end_step=raising),
    "fails in load_state_dict": changed(Uniform, load_state_dict=raising),
    r"returned 5 from draw\(rng\); return a whole number from 0 to 4": TooHigh,
    r"returned -1 from draw\(rng\); return a whole number from 0 to 4": TooLow,
    r"returned 1.0 from draw\(rng\)": changed(Uniform, draw=lambda self, rng: 1.0),
    r"returned None from draw\(rng\)": changed(Uniform, draw=lambda self, rng: None),
    "two equal policies drew .* take all randomness from `rng`": changed(
        Uniform, draw=lambda self, rng: random.randrange(self.num_levels)
    ),
    r"returned None from state_dict\(\); return a mapping": changed(Uniform, state_dict=lambda self: None),
    r"returned {'a': \{1\}} from state_dict\(\)": changed(Uniform, state_dict=lambda self: {"a": {1}}),
    r"after load_state_dict\(state_dict\(\)\), two equal .*; let state_dict\(\) return everything": NoState,
    r"after load_state_dict\(state_dict\(\)\), two equal policies": HalfState,
    r"returned {'level': None} from metrics\(\); return finite": changed(Uniform, metrics=lambda self: {"level": None}),
}
WEIGHTS = {
    r"lacks the methods now\(\); see rgtrain/curriculum/weights.py": changed(FixedWeights, now=None),
    r"but it is called as observe\(dataset, has_signal=...\)": changed(
        FixedWeights, observe=lambda self, dataset: None
    ),
    r"returned {'gcd': 1} from now\(\); return a number": changed(FixedWeights, now=lambda self: {"gcd": 1}),
    r"returned {.*-1.*} from now\(\)": changed(FixedWeights, now=lambda self: dict.fromkeys(self._weights, -1)),
    r"returned {.*0.*} from now\(\)": changed(FixedWeights, now=lambda self: dict.fromkeys(self._weights, 0)),
    r"cannot be resumed: after load_state_dict": changed(Shares, load_state_dict=lambda self, state: None),
    "made with the argument weights, which its": changed(FixedWeights, __init__=lambda self: None),
}


@pytest.fixture
def named(monkeypatch):
    """Return a function that gives a class a name in an importable module."""
    module = ModuleType("own_policies")
    monkeypatch.setitem(sys.modules, "own_policies", module)

    def name(policy) -> str:
        module.Own = policy
        return "pkg://own_policies.Own"

    return name


@pytest.mark.parametrize("message", POLICIES)
def test_an_unsound_curriculum_policy_is_refused_although_no_dataset_has_a_curriculum(named, message):
    raw = {"policy": {"name": named(POLICIES[message])}, "datasets": {}}
    with pytest.raises(ConfigError, match=f"curriculum policy 'pkg://own_policies.Own' .*{message}"):
        build_curriculum(SPECS, seed=1, curriculum=raw, mixture_policy=FIXED)


@pytest.mark.parametrize("message", WEIGHTS)
def test_an_unsound_mixture_policy_is_refused(named, message):
    mixture_policy = {"name": named(WEIGHTS[message])}
    with pytest.raises(ConfigError, match=f"mixture policy 'pkg://own_policies.Own' .*{message}"):
        build_curriculum(SPECS, seed=1, curriculum={"policy": {}, "datasets": {}}, mixture_policy=mixture_policy)


def test_a_sound_policy_is_used_and_restored(named):
    policy = {"name": named(Climb), "patience": 1}
    curriculum, resumed = (small_curriculum(policy) for _ in range(2))
    curriculum.observe([group("spell_backward", 0, 1.0)])
    assert curriculum.metrics()["curriculum/spell_backward/level"] == 1
    resumed.load_state_dict(curriculum.state_dict())
    assert [resumed.choose(i).level for i in range(20)] == [curriculum.choose(i).level for i in range(20)]


def test_a_state_of_an_earlier_version_is_restored():
    curriculum = small_curriculum({"name": "threshold", "window": 8})
    state = {"policy": "Threshold", "num_levels": len(curriculum.ladders["spell_backward"]), "level": 2, "answers": []}
    curriculum.load_state_dict({"policies": {"spell_backward": state}, "weights": {}})
    assert curriculum.metrics()["curriculum/spell_backward/level"] == 2


def test_a_sound_mixture_policy_is_used(named):
    curriculum = small_curriculum({"name": "uniform"}, {"name": named(Shares), "step": 2.0})
    curriculum.observe([group("chain_sum", None, 0.5, mixed=True)])
    assert curriculum.metrics()["curriculum/chain_sum/share"] == 0.75


def test_an_unknown_option_of_an_own_policy_is_refused(named):
    with pytest.raises(ConfigError, match="has no option 'patence'; did you mean 'patience'"):
        small_curriculum({"name": named(Climb), "patence": 1})


def test_a_common_policy_is_not_tried_with_other_numbers_of_levels_than_its_datasets_have(named):
    class Late(Threshold):
        def __init__(self, *, num_levels: int):
            super().__init__(num_levels=num_levels)
            if num_levels != 3:
                raise ConfigError("only for 3 levels")

    small_curriculum({"name": named(Late)}, num_levels=3)


def test_a_level_beyond_the_ladder_is_refused_in_a_run():
    curriculum = small_curriculum({"name": "uniform"})
    curriculum.policies["spell_backward"] = TooLow(num_levels=3)
    with pytest.raises(ConfigError, match="policy TooLow drew level -1 of dataset 'spell_backward'"):
        for index in range(20):
            curriculum.choose(index)
