"""Rendering and measuring the prompts of an evaluation before a model is loaded."""

from pathlib import Path

import pytest
from support.evaluation_files import categories_of

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_config import EvaluationConfig, load_config
from rgtrain.evaluation.evaluation_prompts import (
    PromptedProblem,
    load_tokenizer,
    needed_length,
    problems_of,
    prompt_problems,
    render_prompts,
)
from rgtrain.problems import PromptRenderer, PromptStyle, build_messages
from rgtrain.problems.evaluation_set import load_evaluation_problems


def test_training_holds_out_exactly_the_evaluated_problems(write_file):
    path = write_file()
    evaluated = [problem.fingerprint for _, problem in problems_of(load_config(path).datasets)]
    assert [problem.fingerprint for problem in load_evaluation_problems(path)] == evaluated


def rendered(config: EvaluationConfig) -> tuple[list[PromptedProblem], list[list[int]], int]:
    prompted = prompt_problems(config.datasets, config.prompt_style)
    loaded = load_tokenizer(
        Path(config.model_path), chat_template=config.chat_template, arguments=config.chat_template_kwargs
    )
    token_ids = render_prompts(prompted, loaded)
    limits = {"max_tokens": config.max_tokens, "max_model_len": config.max_model_len}
    return prompted, token_ids, needed_length(prompted, token_ids, context=loaded.context, **limits)


def small_config(write_file, tiny_model, **changes) -> EvaluationConfig:
    return load_config(write_file(model_path=str(tiny_model), developer_prompt="direct", **changes))


def test_prompts_are_rendered_as_in_training(write_file, tiny_model):
    from transformers import AutoTokenizer

    prompted, token_ids, _ = rendered(small_config(write_file, tiny_model))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for item, ids in zip(prompted, token_ids, strict=True):
        messages = build_messages(item.problem.question, PromptStyle("direct"))
        assert ids == PromptRenderer(tokenizer, model="m").token_ids(messages)


def test_the_needed_length_is_the_longest_prompt_plus_max_tokens(write_file, tiny_model):
    _, token_ids, num_tokens = rendered(small_config(write_file, tiny_model, max_tokens=100))
    assert num_tokens == max(map(len, token_ids)) + 100


def test_the_error_for_a_context_that_is_too_short_names_the_dataset(write_file, tiny_model):
    config = small_config(write_file, tiny_model, max_tokens=2040)
    with pytest.raises(
        ConfigError, match=r"context is 2048 tokens.*'chain_sum' of category 'arithmetic'.*max_tokens to"
    ):
        rendered(config)


def test_a_lower_limit_set_by_the_user_is_respected(write_file, tiny_model):
    config = small_config(write_file, tiny_model, max_model_len=20)
    with pytest.raises(ConfigError, match=r"max_model_len is 20 tokens.*leave out these datasets"):
        rendered(config)


def test_a_worked_example_among_the_problems_is_refused(write_file, tiny_model):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    datasets = categories_of({"dataset": "chain_sum", "size": 500, "params": params})
    config = small_config(write_file, tiny_model, categories=datasets, num_examples=3)
    with pytest.raises(ConfigError, match=r"worked example of dataset 'chain_sum' is itself one of.*examples_seed"):
        prompt_problems(config.datasets, config.prompt_style)


def test_a_tokenizer_without_a_chat_template_is_refused(write_file, tiny_model, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "base-model"
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny_model / name)
    with pytest.raises(ConfigError, match="has no chat template, so it is a base model; use its Instruct"):
        rendered(small_config(write_file, folder))


def test_a_chat_template_that_refuses_the_role_is_reported_with_the_fix(write_file, tiny_model, tmp_path):
    folder = tmp_path / "strict-model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")
    with pytest.raises(ConfigError, match=r"refuses role 'system' .*; set developer_role to user"):
        rendered(small_config(write_file, folder))
