"""Before a run starts, a prompt is rendered with the model's template, and a template that loses a part is refused."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from support.checkpoint_files import tiny_tokenizer
from support.experiments import EXPERIMENTS, small_experiment

from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import ModelChoiceConfig, RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.preflight.checks import collect_errors
from rgtrain.preflight.first_problems import first_problems
from rgtrain.preflight.open_settings import complete_config
from rgtrain.preflight.prompt_checks import TemplateFacts, check_prompts, prompt_renderer, template_facts
from rgtrain.preflight.training_model import check_fits_model, find_model
from rgtrain.problems import DatasetSpec

CHATML = """{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' + ('<think>' if enable_thinking else '') }}{% endif %}"""
NO_DEVELOPER = CHATML.replace("in messages", "in messages if m.role != 'developer'")
SHAPE = {"model_type": "llama", "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 128}
SHAPE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 33}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.fixture
def model(tmp_path) -> Path:
    """Return the folder of a model without weights, whose template takes `enable_thinking`."""
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "model.safetensors").touch()
    return folder


def config_of(model: Path, *, prompt: dict | None = None, arguments: dict | None = None, template=None, **changes):
    config = RunConfig.of(plain_config(small_experiment(model.parent / "run")))
    data = replace(config.data, prompt=config.data.prompt | (prompt or {}), apply_chat_template_kwargs=arguments)
    trained = replace(config.model, path=str(model), custom_chat_template=template)
    return replace(config, data=data, model=trained, **changes)


def test_a_template_that_keeps_every_part_is_accepted(model):
    opens = ModelChoiceConfig(shape=None, template_opens_thinking=True)
    assert check_prompts(config_of(model, arguments={"enable_thinking": True}, model_choice=opens)) == []
    assert check_prompts(config_of(model, prompt={"role": "developer"})) == []


def test_a_lost_system_prompt_is_reported_with_the_keys_of_training(model):
    (model / "chat_template.jinja").write_text(NO_DEVELOPER)
    config = config_of(model, prompt={"role": "developer"})
    message = (
        r"the chat template of '.*/model' drops or changes the system prompt, whose role is 'developer'; set "
        r"data\.prompt\.role to user, which puts it into the question, or give another template as "
        r"actor_rollout_ref\.model\.custom_chat_template"
    )
    with pytest.raises(ConfigError, match=message):
        check_prompts(config)
    errors, _ = collect_errors(config)
    assert any("drops or changes the system prompt" in error for error in errors)


def test_examples_are_looked_for(model):
    (model / "chat_template.jinja").write_text(CHATML.replace("in messages", "in messages if m.role != 'assistant'"))
    check_prompts(config_of(model, prompt={"num_examples": 0}))
    with pytest.raises(ConfigError, match="drops or changes the answer of worked example 1"):
        check_prompts(config_of(model, prompt={"num_examples": 1}))


def test_a_template_that_raises_is_refused(model):
    (model / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")
    with pytest.raises(
        ConfigError, match=r"refuses role 'system' \(System role not supported\); set data\.prompt\.role"
    ):
        check_prompts(config_of(model))


def test_a_base_model_needs_a_template_of_the_run(model):
    (model / "chat_template.jinja").unlink()
    with pytest.raises(
        ConfigError, match=r"is a base model; .* give a template as actor_rollout_ref\.model\.custom_ch"
    ):
        check_prompts(config_of(model))
    assert check_prompts(config_of(model, template=CHATML)) == []
    assert check_prompts(config_of(model, arguments={"chat_template": CHATML})) == []
    with pytest.raises(ConfigError, match="custom_chat_template is 'mine.jinja'; give the text of a Jinja template"):
        check_prompts(config_of(model, template="mine.jinja"))


def test_a_template_only_in_the_processors_file_is_refused(model):
    (model / "chat_template.jinja").rename(model / "jinja")
    (model / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    with pytest.raises(ConfigError, match=r"only in chat_template\.json, .*; save its text as chat_template\.jinja in"):
        check_prompts(config_of(model))


def test_an_argument_that_is_none_of_the_template_is_refused_or_reported(model):
    with pytest.raises(ConfigError, match=r"data\.apply_chat_template_kwargs has 'tokenize', which is set by the rend"):
        check_prompts(config_of(model, arguments={"tokenize": True}))
    assert check_prompts(config_of(model, arguments={"enable_thinkng": True})) == [
        f"the chat template of '{model}' has no argument 'enable_thinkng', so it changes nothing"
    ]


def test_a_tokenizer_that_cannot_be_loaded_is_refused(model):
    config = config_of(model)
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load the tokenizer in"):
        prompt_renderer(find_model(config), config)
    (model / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json' holds no JSON object; restore it"):
        check_prompts(config)


def test_a_context_that_yarn_extends_is_used_by_the_fast_engine_only(model):
    config = config_of(model)
    needed = config.data.max_prompt_length + config.data.max_response_length
    scaled = SHAPE | {"max_position_embeddings": needed - 1, "rope_scaling": YARN}
    (model / "config.json").write_text(json.dumps(scaled))
    check_fits_model(config, find_model(config))
    with pytest.raises(ConfigError, match=f"has a context of {needed - 1}; lower one of them"):
        check_fits_model(replace(config, engine="verl"), find_model(config))


GEMMA = """{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'model: ' }}{% endif %}"""
QWEN3 = """{%- for m in messages %}{%- set is_answer = m.role == 'assistant' %}
{{- m.role + ': ' + (m.content.split('</think>')[-1] if is_answer else m.content) + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
DEEPSEEK_R1 = QWEN3.replace("'assistant: ' }}", "'assistant: <think>\n' }}")
OLDER_TEMPLATES = {"gemma": GEMMA, "qwen3": QWEN3, "deepseek_r1": DEEPSEEK_R1, "chatml": CHATML}


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("gemma", None, TemplateFacts(has_system_role=False)),
        ("qwen3", None, TemplateFacts()),
        ("qwen3", {"enable_thinking": False}, TemplateFacts()),
        ("deepseek_r1", None, TemplateFacts(opens_thinking=True)),
        ("chatml", {"enable_thinking": True}, TemplateFacts(opens_thinking=True)),
        ("chatml", None, TemplateFacts()),
    ],
)
def test_facts_are_read_from_the_models_own_template(model, name, arguments, expected):
    (model / "chat_template.jinja").write_text(OLDER_TEMPLATES[name])
    assert template_facts(config_of(model, arguments=arguments)) == expected


def test_a_template_of_the_run_counts_in_place_of_the_models(model):
    assert template_facts(config_of(model, template=DEEPSEEK_R1)).opens_thinking
    assert not template_facts(config_of(model, template=GEMMA)).has_system_role


def test_open_values_are_filled_in_from_the_template(model):
    (model / "chat_template.jinja").write_text(GEMMA.replace("'model: '", "'model: <think>'"))
    register_plugins()
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        words = [f"model={model}", "reward=accuracy_format", "hardware=cpu", "trainer.experiment_name=test"]
        composed = compose("small", overrides=words)
    config = complete_config(composed, checked_config(composed.copy()))
    assert (config.model.template_opens_thinking, config.data.prompt.role) == (True, "user")
    # A value that refers to it follows.
    assert config.reward.parts.format.prepend_thinking_token is True
    assert check_prompts(RunConfig.of(plain_config(config))) == []


@pytest.mark.parametrize("given", [True, False])
def test_a_setting_that_contradicts_the_template_is_refused(model, given):
    (model / "chat_template.jinja").write_text(CHATML if given else DEEPSEEK_R1)
    end = r"assistant: ', without an" if given else r"assistant: <think>\\n', an"
    message = (
        rf"model\.template_opens_thinking is {str(given).lower()}, but the chat template of '.*/model' ends the prompt "
        rf"with '.*{end} open <think> tag; set it to {str(not given).lower()}, or to null, which reads it"
    )
    with pytest.raises(ConfigError, match=message):
        check_prompts(config_of(model, model_choice=ModelChoiceConfig(shape=None, template_opens_thinking=given)))


def test_thinking_that_a_template_removes_from_examples_is_refused(model):
    (model / "chat_template.jinja").write_text(QWEN3)
    example = {"question": "What is 1 + 1?", "answer": "2"}
    check_prompts(config_of(model, prompt={"examples": [example]}))
    message = "drops or changes the answer of worked example 1, .*; leave out its thinking, which many templates remove"
    with pytest.raises(ConfigError, match=message):
        check_prompts(config_of(model, prompt={"examples": [example | {"thinking": "One and one."}]}))
    (model / "chat_template.jinja").write_text(CHATML)
    check_prompts(config_of(model, prompt={"examples": [example | {"thinking": "One and one."}]}))


@pytest.fixture
def own_prompt(monkeypatch):
    """Return a function that gives a prompt function a name in an importable module."""
    module = ModuleType("own_prompts")
    monkeypatch.setitem(sys.modules, "own_prompts", module)

    def name(function) -> dict:
        module.own = function
        return {"system_prompt": "pkg://own_prompts.own", "num_examples": 0}

    return name


def test_a_prompt_function_is_tried_with_a_problem_of_each_dataset(model, own_prompt):
    seen = []
    assert (
        check_prompts(config_of(model, prompt=own_prompt(lambda question: seen.append(question) or "Be brief."))) == []
    )
    assert {question.dataset for question in seen} == {"chain_sum", "spell_backward"}

    def for_sums(question):
        return {"chain_sum": "Be brief."}[question.dataset]

    with pytest.raises(
        ConfigError, match="fails for a problem of dataset 'spell_backward' .KeyError: 'spell_backward'"
    ):
        check_prompts(config_of(model, prompt=own_prompt(for_sums)))
    calls = itertools.count()
    with pytest.raises(ConfigError, match="returned two prompts for one problem of dataset 'chain_sum'; let it depend"):
        check_prompts(config_of(model, prompt=own_prompt(lambda question: f"Call {next(calls)}.")))


def test_a_prompt_function_is_tried_without_a_level_as_evaluations_have_none(model, own_prompt, monkeypatch):
    # Making the levels of a dataset takes seconds.
    levels = {"spell_backward": [DatasetSpec("spell_backward")]}
    curriculum = SimpleNamespace(level_specs=lambda: levels)
    monkeypatch.setattr("rgtrain.preflight.first_problems.build_curriculum", lambda specs, **settings: curriculum)
    config = config_of(model, prompt=own_prompt(lambda question: f"Level {question.level + 1}."))
    config = replace(config, data=replace(config.data, mixture={"spell_backward": None}))
    with pytest.raises(ConfigError, match="fails for a problem of dataset 'spell_backward' .TypeError"):
        check_prompts(config)
    # Reward functions have a level in training and validation.
    assert [problem.level for problem in first_problems(config.data)] == [0]
