"""Draws depend on the state, which training groups change and validation does not; a saved curriculum continues."""

import json
from collections import Counter

import pytest
from support.curricula import FIXED, SPECS, group, small_curriculum

from rgtrain.curriculum.curriculum import Curriculum, GroupResult
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.errors import ConfigError
from rgtrain.problems import build_mixture
from rgtrain.problems.mixture import Split


@pytest.fixture(scope="module")
def threshold() -> Curriculum:
    return small_curriculum({"name": "threshold", "window": 8})


def test_a_problem_is_drawn_at_the_current_level_of_the_policy():
    curriculum = small_curriculum({"name": "threshold", "window": 8})
    mixture = build_mixture(SPECS, seed=1, size=200, choose=curriculum.choose)
    assert {mixture[i].level for i in range(40)} == {0, None}
    curriculum.observe([group("spell_backward", 0, 1.0)])
    problems = [mixture[i] for i in range(40) if mixture[i].dataset == "spell_backward"]
    assert {problem.level for problem in problems} == {1}
    assert {len(problem.entry["answer"]) for problem in problems} == {5}
    assert problems[0].entry["metadata"]["source_params"] == {"min_word_len": 5, "max_word_len": 5}


def test_a_curriculum_without_levels_does_not_change_the_mixture():
    curriculum = build_curriculum(SPECS, seed=1, curriculum={"policy": {}, "datasets": {}}, mixture_policy=FIXED)
    with_it = build_mixture(SPECS, seed=1, size=50, choose=curriculum.choose)
    without = build_mixture(SPECS, seed=1, size=50)
    assert [problem.question for problem in with_it] == [problem.question for problem in without]


def test_validation_draws_every_level_after_any_observation(threshold):
    validation = build_mixture(SPECS, seed=1, size=300, split=Split.VALIDATION, choose=threshold.choose_any_level)
    before = [(problem.level, problem.question) for problem in validation]
    threshold.observe([group("spell_backward", 0, 1.0)])
    assert before == [(problem.level, problem.question) for problem in validation]
    counts = Counter(level for level, _ in before)
    assert all(counts[level] > 10 for level in range(5))


def test_a_batch_may_lack_a_dataset_whose_level_has_just_changed():
    curriculum = small_curriculum({"name": "threshold", "window": 8})
    curriculum.observe([group("spell_backward", 0, 1.0)])
    curriculum.observe([group("chain_sum", None, 0.5)])
    assert curriculum.metrics()["curriculum/spell_backward/level"] == 1


def test_success_by_level_covers_the_last_step_only():
    curriculum = small_curriculum({"name": "uniform"})
    curriculum.observe([group("spell_backward", 3, 1.0), group("spell_backward", 3, 0.5)])
    assert curriculum.metrics()["curriculum/spell_backward/success_at_level_3"] == 0.75


@pytest.mark.parametrize(
    ("scores", "rewards", "shifts"),
    [
        ([0.0, 1.0], [0.0, 1.0], True),
        # All correct and all wrong, with a length penalty.
        ([1.0, 1.0], [0.9, 1.0], False),
        ([0.0, 0.0], [-0.5, -0.1], False),
        # The reward ignores partial credit.
        ([0.1, 0.2], [0.0, 0.0], False),
    ],
)
def test_a_group_has_a_signal_if_both_scores_and_rewards_differ(scores, rewards, shifts):
    curriculum = small_curriculum({"name": "uniform"}, {"name": "adaptive"})
    before = curriculum.weights.now()
    others = [GroupResult("spell_backward", 0, scores=[0.0, 0.0], rewards=[0.0, 0.0])]
    for _ in range(10):
        curriculum.observe([*others, GroupResult("chain_sum", None, scores=scores, rewards=rewards)])
    assert (curriculum.weights.now() != before) == shifts


@pytest.mark.parametrize("policy", [{"name": "threshold", "window": 8}, {"name": "frontier"}])
def test_a_restored_curriculum_makes_the_same_draws_as_the_uninterrupted_one(policy):
    whole = small_curriculum(policy, {"name": "adaptive"})
    for step in range(30):
        whole.observe(
            [group("spell_backward", min(step // 6, 4), 1.0, mixed=step % 3 == 0), group("chain_sum", None, 0)]
        )
    resumed = small_curriculum(policy, {"name": "adaptive"})
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert [resumed.choose(i) for i in range(200)] == [whole.choose(i) for i in range(200)]


def test_the_state_of_another_curriculum_is_refused():
    state = small_curriculum({"name": "uniform"}).state_dict()
    with pytest.raises(ConfigError, match="resume with the configuration that the run was started with"):
        small_curriculum({"name": "uniform"}, num_levels=3).load_state_dict(state)
