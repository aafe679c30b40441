"""The arms of a task have the same settings apart from their own ones, and all trainings compose."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.experiments import composed

from rgtrain.config.run_config import plain_config
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import parse_mixture
from rgtrain.problems.evaluation_set import parse_categories, read_evaluation_file

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.commands import overrides, sft_batch_size, stages
from evidence.control_rewards import random_reward
from evidence.parts import breadth, categories, controls, learning_rate, warm_start
from evidence.records import write_record
from evidence.side_by_side import in_order
from evidence.training_plan import EVIDENCE, LEARNING_RATE, TRAINED, read_programme
from rgtrain.problems.judged_completion import JudgedCompletion
from rgtrain.problems.rewards import parse_reward

PROGRAMME = read_programme()
MODELS = list(PROGRAMME.models.values())
PARTS = (learning_rate, categories, controls)
RATES = {"rl": 1e-5, "sft": 2e-5}


def model_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def test_any_folder_of_a_model_has_a_plan_and_one_that_is_named_has_its_own(tmp_path):
    default = PROGRAMME.models[PROGRAMME.default_model]
    other = PROGRAMME.model_of(model_folder(tmp_path / "Other-3B"))
    assert other == replace(default, name="other-3b", folder="Other-3B", chosen={})
    for model in MODELS:
        assert PROGRAMME.model_of(f"nowhere/{model.folder}/") == model
        # Folders are sometimes named in lower case.
        assert PROGRAMME.model_of(f"nowhere/{model.folder.lower()}") == model
    entry = replace(default, name="third", folder="Other-3B", steps=7)
    assert replace(PROGRAMME, models={**PROGRAMME.models, "third": entry}).model_of(tmp_path / "Other-3B") == entry


def test_models_with_records_join_those_of_the_programme():
    joined = PROGRAMME.with_models(["other-3b", MODELS[0].name, "other-3b"])
    assert list(joined.models) == [*PROGRAMME.models, "other-3b"]
    assert joined.models["other-3b"].settings == PROGRAMME.models[PROGRAMME.default_model].settings
    for part in (*PARTS, warm_start):
        trainings = part.trainings(joined, joined.models["other-3b"])
        assert {training.model for training in trainings} == {"other-3b"}


def test_an_unknown_default_model_is_refused(tmp_path):
    text = (EVIDENCE / "programme.yaml").read_text()
    path = tmp_path / "programme.yaml"
    path.write_text(text.replace(f"default_model: {PROGRAMME.default_model}", "default_model: qwen"))
    with pytest.raises(ConfigError, match="is 'qwen', which is none of its models; .choose from"):
        read_programme(path)


def trainings_of(model):
    return in_order([training for part in PARTS for training in part.trainings(PROGRAMME, model)])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_names_are_unique_and_prerequisites_come_first(model):
    trainings = trainings_of(model)
    names = [training.name for training in trainings]
    assert len(set(names)) == len(names)
    for place, training in enumerate(trainings):
        assert {other.name for other in training.prerequisites} <= set(names[:place])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_category_has_every_arm_with_every_seed(model):
    found = {(training.task, training.arm, training.seed) for training in controls.trainings(PROGRAMME, model)}
    arms = ("accuracy", "format_only", "random_reward", "inverted", "sft", "sft_then_rl")
    assert found == {
        ("base", "greedy", 1),
        *(("base", "none", seed) for seed in model.seeds),
        *((task, arm, seed) for task in PROGRAMME.categories for arm in arms for seed in model.seeds),
    }
    assert len(model.seeds) >= 3


def test_all_arms_have_the_same_steps_settings_and_problems():
    model = MODELS[0]
    arms = [arm(PROGRAMME, model, PROGRAMME.categories[0], 1) for arm in (categories.accuracy, *controls.ARMS)]
    assert {training.sft_steps + training.rl_steps for training in arms} == {model.steps}
    assert all(training.settings == arms[0].settings for training in arms)
    assert all(training.equal_tokens == arms[0] for training in arms if training.sft_steps)


def test_two_trainings_of_one_name_must_be_equal():
    training = categories.accuracy(PROGRAMME, MODELS[0], PROGRAMME.categories[0], 1)
    assert len(in_order([training, replace(training)])) == len(in_order([training]))
    with pytest.raises(ConfigError, match="two different trainings are called"):
        in_order([training, replace(training, rl_steps=1)])


def test_control_configurations_differ_only_in_the_reward():
    model = MODELS[0]
    configs = {}
    for arm in (categories.accuracy, controls.format_only, controls.random_reward, controls.inverted):
        training = arm(PROGRAMME, model, "arithmetic", 3)
        words = overrides(without_validation_files(training.settings))
        configs[training.arm] = plain_config(
            composed("model=smollm2_135m", "seed=3", *words, name=training.config, config_dir=configs_folder())
        )
    rewards = {arm: config["reward"].pop("parts") for arm, config in configs.items()}
    assert all(config == configs["accuracy"] for config in configs.values())
    weights = {arm: {part: options["weight"] for part, options in parts.items()} for arm, parts in rewards.items()}
    random_name = "pkg://evidence.control_rewards.random_reward"
    assert weights == {
        "accuracy": {"accuracy": 1, "format": 0.2},
        "format_only": {"accuracy": 0, "format": 0.2},
        "random_reward": {"accuracy": 0, "format": 0.2, random_name: 1},
        "inverted": {"accuracy": -1, "format": 0.2},
    }
    assert rewards["random_reward"][random_name]["seed"] == 3
    assert all(parse_reward(parts) for parts in rewards.values())


def configs_folder() -> Path:
    return PROJECT_ROOT / "evidence" / "configs"


def without_validation_files(settings):
    return {key: value for key, value in settings.items() if key != "data.validation_files"}


@pytest.mark.parametrize("model", MODELS[1:], ids=lambda model: model.name)
def test_the_settings_of_a_model_compose(model):
    training = categories.accuracy(PROGRAMME, model, "arithmetic", 1)
    words = overrides(without_validation_files(training.settings))
    config = composed("model=qwen2.5_0.5b", *words, name=training.config, config_dir=configs_folder())
    assert config.data.mixture == training.settings["data.mixture"]


@pytest.mark.parametrize("task", [*PROGRAMME.categories, LEARNING_RATE])
def test_an_evaluation_file_holds_the_trained_and_the_unseen_datasets(task):
    datasets = parse_categories(read_evaluation_file(PROGRAMME.evaluation_file(task))["categories"])
    trained = {dataset.name for dataset in datasets if dataset.category == TRAINED}
    assert {spec.name for spec in parse_mixture(PROGRAMME.mixture(task))} == trained
    assert len({dataset.name for dataset in datasets}) == len(datasets)


def test_no_dataset_is_in_two_evaluation_files():
    names = [name for task in (*PROGRAMME.categories, LEARNING_RATE) for name in PROGRAMME.datasets(task)]
    assert len(set(names)) == len(names)


def test_only_breadth_also_has_the_datasets_that_choose_the_learning_rates():
    chosen_on = set(PROGRAMME.datasets(LEARNING_RATE))
    for path in (EVIDENCE / "evaluation").glob("*.yaml"):
        used = {entry.get("generator", name) for name, entry in PROGRAMME.datasets(path.stem).items()}
        assert path.stem in (LEARNING_RATE, breadth.TASK) or not used & chosen_on, path


def test_values_are_written_as_hydra_reads_them():
    words = overrides(
        {"seed": 1, "data.mixture": {"sound/x": {"weight": 1}}, "a.b": None, "c": "it's 1: {x}", "d": [1, "y"]}
    )
    assert words == ["seed=1", "++data.mixture={sound/x:{weight:1}}", "a.b=null", r"c='it\'s 1: {x}'", "d=[1,y]"]


def test_a_training_ends_with_the_evaluation():
    model, run_dir = MODELS[0], Path("/runs/x")

    def programs(training):
        commands = stages(training, run_dir, start="start", rates=RATES, sft_batch=7)
        shown = ("model=", "trainer.total", "trainer.test", "trainer.val")
        return [(command[1], [word for word in command if word.startswith(shown)]) for command in commands]

    trained = categories.accuracy(PROGRAMME, model, "arithmetic", 1)
    [(program, words)] = programs(trained)
    assert program == "train_grpo.py"
    assert words == ["model=start", f"trainer.total_training_steps={model.steps}", f"trainer.test_freq={model.steps}"]
    [(program, words)] = programs(categories.untrained(PROGRAMME, model, 1))
    assert words == ["model=start", "trainer.val_only=true"]
    both = programs(controls.sft_then_rl(PROGRAMME, model, "arithmetic", 1))
    assert [program for program, _ in both] == ["train_sft.py", "train_grpo.py"]
    assert both[1][1][0] == "model=/runs/x/sft/huggingface"


def test_rewards_come_from_other_problems_than_the_taught_answers():
    def values(training, name):
        commands = stages(training, Path("/runs/x"), start="start", rates=RATES, sft_batch=400)
        found = [[word.split("=")[1] for word in command if word.startswith(f"{name}=")] for command in commands]
        return [int(each[-1]) for each in found if each]

    model = MODELS[0]
    seeds = {seed: values(controls.sft_then_rl(PROGRAMME, model, "arithmetic", seed), "seed") for seed in model.seeds}
    assert [rewarded for _, rewarded in seeds.values()] == list(model.seeds)
    assert len({seed for pair in seeds.values() for seed in pair}) == 2 * len(model.seeds)
    # An arm with right answers only has the problems of the rewarded one, and each of them once.
    taught = controls.sft(PROGRAMME, model, "arithmetic", 1)
    assert values(taught, "seed") == [1, 1]
    assert values(taught, "data.train_size") == [400 * model.steps]


def test_right_answers_have_the_tokens_of_the_rewarded_completions(tmp_path):
    training = controls.sft(PROGRAMME, MODELS[0], "arithmetic", 1)
    tokens = {"trained": 10 * 256 * 120, "trained_prompts": 10 * 256 * 100, "samples": 10 * 256}
    write_record(training.equal_tokens.record_path(tmp_path), {"tokens": tokens, "config": {"rl_steps": 10}})
    assert sft_batch_size(training, answer_tokens=8, results=tmp_path) == round(256 * 120 / 108)
    assert sft_batch_size(replace(training, equal_tokens=None), answer_tokens=8, results=tmp_path) == 256


def test_the_learning_rate_with_the_best_mean_is_chosen(tmp_path):
    model = replace(MODELS[0], chosen={})
    with pytest.raises(ConfigError, match="lacks 8 of the trainings"):
        learning_rate.learning_rate(PROGRAMME, model, "rl", results=tmp_path)
    for trial in PROGRAMME.learning_rate_trials(model, "rl"):
        solved = {2e-5: 5, 4e-5: 6}.get(trial.rl_learning_rate, 1) + trial.seed
        evaluation = {"gcd": {"samples": 2, "solved": [solved, solved]}}
        write_record(trial.record_path(tmp_path), {"evaluation": evaluation})
    assert learning_rate.learning_rate(PROGRAMME, model, "rl", results=tmp_path) == 4e-5
    assert learning_rate.learning_rate(PROGRAMME, replace(model, chosen={"rl": 1e-6}), "rl") == 1e-6


@pytest.mark.parametrize("kind", ["rl", "sft"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_learning_rate_in_the_programme_is_that_of_the_records(model, kind):
    trials = PROGRAMME.learning_rate_trials(model, kind)
    if kind in model.chosen and all(trial.record_path().is_file() for trial in trials):
        assert learning_rate.best_rate(PROGRAMME, model, kind) == model.chosen[kind]


def test_random_rewards_ignore_the_text_and_differ_between_equal_completions():
    def group(step, *texts):
        return [JudgedCompletion(text, 1.0, 3, 9, question="2 + 2?", step=step) for text in texts]

    first = random_reward(group(1, *"a" * 64), seed=1)
    assert first == random_reward(group(1, *"b" * 64), seed=1)
    assert set(first) == {0.0, 1.0}
    assert first != random_reward(group(2, *"a" * 64), seed=1)
    assert first != random_reward(group(1, *"a" * 64), seed=2)
    many = [value for step in range(100) for value in random_reward(group(step, *"a" * 8), seed=1)]
    assert sum(many) / len(many) == pytest.approx(0.5, abs=0.06)
