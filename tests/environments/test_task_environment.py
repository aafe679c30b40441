"""An environment has the problems, scores and curriculum of training, and its ids name problems across restarts."""

from types import SimpleNamespace

import pytest
from support.experiments import EXPERIMENTS, small_experiment

from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.environments import GroupReport, TaskEnvironment, UnknownProblem, open_environment
from rgtrain.errors import ConfigError
from rgtrain.machine import environment as machine_environment
from rgtrain.problems import load_entry
from rgtrain.problems.soundness import hash_dependent

SEED = 3


def opened(**changes) -> TaskEnvironment:
    settings = {
        "mixture": {"chain_sum": {"weight": 2}, "spell_backward": {}},
        "curriculum": {"datasets": {"spell_backward": {"num_levels": 3}}},
        "reward": {"accuracy": {}, "length": {"weight": 0.5}},
        "scorer": {"num_workers": 1},
        "seed": SEED,
        "size": 40,
        "validation_size": 8,
        "hold_out_shipped": False,
    }
    return open_environment(**settings | changes)


@pytest.fixture(scope="module")
def environment():
    with opened() as environment:
        yield environment


@pytest.fixture(scope="module")
def restarted():
    with opened() as environment:
        yield environment


def test_problems_are_those_of_training(tiny_model, tmp_path):
    from transformers import AutoTokenizer

    from rgtrain.training.dataset import TRAIN, VALIDATION, ReasoningGymDataset

    # Some prompts are longer than this, so training replaces them.
    changes = [
        "data.max_prompt_length=171",
        f"actor_rollout_ref.model.path={tiny_model}",
        "reward.scorer.num_workers=1",
    ]
    config = small_experiment(tmp_path, *changes)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    training, validation = (
        ReasoningGymDataset(split, tokenizer=tokenizer, config=config.data) for split in (TRAIN, VALIDATION)
    )
    with TaskEnvironment(RunConfig.of(plain_config(config)), with_tokenizer=True) as environment:
        assert len(environment) == len(training)
        rows = [training[index] for index in range(60)]
        assert sum(row["extra_info"]["num_too_long"] for row in rows) > 0
        ours = [environment.problem(index) for index in range(60)]
        validated = [validation[index] for index in range(len(validation))]
        for row, problem in zip(rows + validated, ours + list(environment.validation), strict=True):
            assert list(problem.messages) == row["raw_prompt"]
            assert problem.entry == row["extra_info"]["entry"]
            assert not problem.thinking_begun


def test_an_id_names_its_problem_in_another_environment(environment, restarted):
    given = [environment.problem(index) for index in range(20)] + list(environment.validation)
    assert len({problem.id for problem in given}) == len(given)
    assert [restarted.find(problem.id) for problem in given] == given


def test_an_id_of_another_problem_is_refused(environment, restarted):
    problem = environment.problem(0)
    dataset, split, seed, position, level, digest = problem.id.rsplit(":", 5)
    # The question of a validation problem, in the form of a training problem.
    disguised = environment.validation[0].id.replace(":validation:", ":train:")
    texts = [
        *("", ":" * 5, "a" * 10_000, "chain_sum", f"{problem.id} ", f"{problem.id}:", "\ud800:::::"),
        disguised,
        f"gcd:{split}:{seed}:{position}:{level}:{digest}",
        f"{dataset}:test:{seed}:{position}:{level}:{digest}",
        f"{dataset}:{split}:{SEED + 1}:{position}:{level}:{digest}",
        f"{dataset}:{split}:0{seed}:{position}:{level}:{digest}",
        f"{dataset}:{split}:{seed}:{int(position) + 1}:{level}:{digest}",
        f"{dataset}:{split}:{seed}:-1:{level}:{digest}",
        f"{dataset}:{split}:{seed}:{10**30}:{level}:{digest}",
        f"{dataset}:{split}:{seed}:{position}:7:{digest}",
        f"{dataset}:{split}:{seed}:{position}:{level}:{'0' * 16}",
    ]
    for text in texts:
        with pytest.raises(UnknownProblem):
            restarted.find(text)


def test_the_next_problems_begin_again_after_the_last_one():
    with opened(size=3) as environment:
        taken = [problem.id for problem in environment.take(7)]
        assert taken[:3] == [environment.problem(index).id for index in range(3)]
        assert taken == [*taken[:3], *taken[:3], taken[0]]


def test_reports_change_the_curriculum_and_the_state_restores_it(restarted):
    with opened() as environment:
        spelled = [
            problem
            for problem in (environment.problem(index) for index in range(40))
            if problem.dataset == "spell_backward"
        ]
        assert {problem.level for problem in spelled} == {0}
        for _ in range(4):
            environment.report([GroupReport(problem.id, [1.0] * 8, [1.0] * 8) for problem in spelled])
        environment.take(5)
        harder = [environment.problem(index) for index in range(40)]
        assert max(problem.level for problem in harder if problem.level is not None) > 0
        state = environment.state_dict()
        restarted.load_state_dict(state)
        assert [restarted.problem(index) for index in range(40)] == harder
        assert restarted.take(1) == [environment.problem(5)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"seed": 4}, "belongs to another environment"),
        ({"datasets": ["gcd"]}, "belongs to another environment"),
        ({"next": 40}, "next problem 40"),
        ({"next": True}, "next problem True"),
        ({"curriculum": None}, "damaged"),
        ({"curriculum": {"policies": {}}}, "policies and levels"),
    ],
)
def test_an_unusable_state_is_refused(environment, damage, message):
    before = environment.state_dict()
    with pytest.raises(ConfigError, match=message):
        environment.load_state_dict({**before, **damage})
    assert environment.state_dict() == before


def test_scores_have_the_parts_and_the_answer(environment):
    problem = environment.problem(0)
    answer = load_entry(problem.entry)["answer"]
    right, wrong, silent = environment.score(
        [
            (problem, f"<answer>{answer}</answer>", 1024),
            (problem.id, "<answer>?</answer>", 0),
            (problem.id, f"<think><answer>{answer}</answer>", 5),
        ]
    )
    assert (right.accuracy, right.parts, right.reward) == (1.0, {"accuracy": 1.0, "length": -1.0}, 0.5)
    assert (right.answer, wrong.answer, silent.answer) == (answer, "?", None)
    assert (silent.accuracy, silent.parts["length"], silent.error) == (0.0, 0.0, None)
    [begun] = environment.score([(problem, f"draft</think><answer>{answer}</answer>", 5, "stop", True)])
    assert begun.accuracy == 1


def test_a_reward_that_reads_the_number_of_tokens_needs_it(environment):
    for num_tokens, message in ((None, "give num_tokens"), (-1, "from 0 up")):
        with pytest.raises(ConfigError, match=message):
            environment.score([(environment.problem(0), "", num_tokens)])


@pytest.mark.parametrize(
    ("accuracies", "rewards"),
    [([], []), ([1.0], []), ([1.5], [1.0]), ([float("nan")], [1.0]), ([1.0], [float("inf")])],
)
def test_an_unusable_report_is_refused(environment, accuracies, rewards):
    before = environment.state_dict()
    with pytest.raises(ConfigError, match="group has"):
        environment.report([GroupReport(environment.problem(0), accuracies, rewards)])
    assert environment.state_dict() == before


def test_a_closed_environment_scores_no_more():
    with opened(curriculum=None, size=2) as environment:
        problem = environment.problem(0)
    with pytest.raises(RuntimeError, match="closed"):
        environment.score([(problem, "", 1)])
    environment.close()


def test_mistakes_are_reported_as_in_training(tmp_path):
    for arguments, message in (
        ({"config": "quickstrat"}, "quickstart"),
        ({"config": str(tmp_path / "absent.yaml")}, "there is no experiment"),
        ({"overrides": ["data.mixtur=x"]}, "mixture"),
        ({"mixture": {"chain_sun": {}}}, "chain_sum"),
        ({"mixture": {"chain_sum": {}}, "reward": {"lenght": {}}}, "length"),
        ({"mixture": {"chain_sum": {}}, "seed": 10**6}, "seed"),
        ({"mixture": {"chain_sum": {}}, "size": 0}, "train_size"),
        ({"mixture": {"chain_sum": {}}, "prompt": {"system": "direct"}}, "system_prompt"),
        ({"mixture": {"game_of_life_halting": {}}}, "pays without a solution"),
        ({"mixture": object()}, "data.mixture"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_environment(**arguments)


def test_an_experiment_file_of_any_folder_can_be_opened():
    with pytest.raises(ConfigError, match="not on this machine"):
        open_environment(EXPERIMENTS / "small.yaml", model="org/absent-model")


def test_problems_that_depend_on_the_hash_seed_need_a_fixed_one(monkeypatch):
    monkeypatch.setattr(machine_environment, "sys", SimpleNamespace(flags=SimpleNamespace(hash_randomization=1)))
    assert hash_dependent(["word_ladder", "chain_sum"]) == ["word_ladder"]
    with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
        machine_environment.check_hash_seed(["word_ladder"])
    machine_environment.check_hash_seed([])
