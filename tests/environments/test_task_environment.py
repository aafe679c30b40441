"""An environment has the problems, scores and curriculum of training, and its ids name problems across restarts."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.checkpoint_files import tiny_tokenizer
from support.experiments import EXPERIMENTS

from rgtrain.curriculum import ladder
from rgtrain.environments import GroupReport, TaskEnvironment, UnknownProblem, open_environment, task_environment
from rgtrain.environments.environment_config import compose_experiment
from rgtrain.errors import ConfigError
from rgtrain.machine import environment as machine_environment
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import load_entry
from rgtrain.problems.soundness import hash_dependent

SEED = 3
EMBEDDED = PROJECT_ROOT / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def config():
    return compose_experiment(
        replace={
            "data.mixture": {"chain_sum": {"weight": 2}, "spell_backward": {}},
            "reward.parts": {"accuracy": {}, "length": {"weight": 0.5}},
            "seed": SEED,
            "data.train_size": 40,
            "data.validation_size": 8,
            "data.hold_out_shipped": False,
        },
        merge={"data.curriculum": {"datasets": {"spell_backward": {"num_levels": 3}}}},
    )


@pytest.fixture(scope="module")
def opened(config, scorer):
    """Open environments that share the scoring processes of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_environment, "Scorer", lambda **_: nullcontext(scorer))
        # All levels make problems. The process that tries them takes seconds to start.
        patch.setattr(ladder, "make_problems", lambda specs: [True] * len(specs))
        yield lambda **data: TaskEnvironment(replace(config, data=replace(config.data, **data)), with_tokenizer=False)


@pytest.fixture(scope="module")
def environment(opened):
    with opened() as environment:
        yield environment


@pytest.fixture(scope="module")
def restarted(opened):
    with opened() as environment:
        yield environment


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


def test_the_next_problems_begin_again_after_the_last_one(opened):
    with opened(train_size=3) as environment:
        taken = [problem.id for problem in environment.take(7)]
        assert taken[:3] == [environment.problem(index).id for index in range(3)]
        assert taken == [*taken[:3], *taken[:3], taken[0]]


def test_reports_change_the_curriculum_and_the_state_restores_it(opened, restarted):
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


def test_a_closed_environment_scores_no_more(opened):
    with opened() as environment:
        problem = environment.problem(0)
    with pytest.raises(RuntimeError, match="closed"):
        environment.score([(problem, "", 1)])
    environment.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "quickstrat"}, "quickstart"),
        ({"config": "absent/experiment.yaml"}, "there is no experiment"),
        ({"overrides": ["data.mixtur=x"]}, "mixture"),
        ({"mixture": {"chain_sun": {}}, "seed": 1}, "chain_sum"),
        ({"mixture": {"chain_sum": {}}, "prompt": {"system": "direct"}}, "system_prompt"),
        ({"mixture": object()}, "data.mixture"),
    ],
)
def test_mistakes_are_reported_as_in_training(arguments, message):
    with pytest.raises(ConfigError, match=message):
        open_environment(**arguments)


def test_values_that_an_experiment_leaves_open_follow_from_the_chat_template():
    template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    given = {
        "actor_rollout_ref.model.path": str(EMBEDDED),
        "actor_rollout_ref.model.custom_chat_template": template,
        "model.template_opens_thinking": None,
        "data.prompt.role": None,
    }
    for with_template, found in ((True, ("user", True)), (False, (None, None))):
        config = compose_experiment("quickstart", replace=given, with_template=with_template)
        assert (config.data.prompt["role"], config.model_choice.template_opens_thinking) == found


def test_worked_examples_of_the_first_steps_are_left_out(opened, config):
    examples = {"num_examples": 1, "examples_until_step": 2}
    with opened(prompt={**config.data.prompt, **examples}) as environment:
        problems = [environment.problem(0), environment.validation[0]]
    assert [len(problem.messages) for problem in problems] == [2, 2]


def test_validation_problems_are_not_reported(environment):
    with pytest.raises(ConfigError, match="is a validation problem"):
        environment.report([GroupReport(environment.validation[0].id, [1.0], [1.0])])


def test_unsound_datasets_are_refused(config):
    mixture = {"game_of_life_halting": {}}
    curriculum = {**config.data.curriculum, "datasets": {}}
    with pytest.raises(ConfigError, match="pays without a solution"):
        TaskEnvironment(
            replace(config, data=replace(config.data, mixture=mixture, curriculum=curriculum)), with_tokenizer=False
        )


def test_the_model_brings_its_own_values_of_prompts(monkeypatch):
    opened = []
    monkeypatch.setattr(task_environment, "TaskEnvironment", lambda config, **_: opened.append(config))
    for experiment in ("quickstart", None):
        open_environment(experiment, model="qwen3_0.6b")
        assert opened[-1].model.path == "Qwen/Qwen3-0.6B"
        assert opened[-1].data.apply_chat_template_kwargs == {"enable_thinking": True}


def test_an_experiment_file_of_any_folder_can_be_opened():
    with pytest.raises(ConfigError, match="not on this machine"):
        open_environment(EXPERIMENTS / "small.yaml", model="org/absent-model")


def test_the_template_of_a_named_model_decides_the_same_values_as_in_training(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "chat_template.jinja").write_text(
        "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ 'assistant: <think>' }}"
    )
    config = compose_experiment(
        EXPERIMENTS / "small.yaml", ["reward=accuracy_format", f"model={tmp_path}"], with_template=True
    )
    assert config.data.prompt["role"] == "user"
    assert config.reward.parts["format"]["prepend_thinking_token"] is True


def test_problems_that_depend_on_the_hash_seed_need_a_fixed_one(monkeypatch):
    monkeypatch.setattr(machine_environment, "sys", SimpleNamespace(flags=SimpleNamespace(hash_randomization=1)))
    assert hash_dependent(["word_ladder", "chain_sum"]) == ["word_ladder"]
    with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
        machine_environment.check_hash_seed(["word_ladder"])
    machine_environment.check_hash_seed([])
