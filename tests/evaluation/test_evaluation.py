"""What an evaluation file may say, and what is refused before a model is loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reasoning_gym
import yaml

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_config import EvaluationConfig, load_config, parse_overrides
from rgtrain.evaluation.evaluation_model import opened_model
from rgtrain.evaluation.evaluation_prompts import PromptedProblem, problems_of, prompt_problems, render_prompts
from rgtrain.machine.devices import compute_dtype
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import PromptStyle, build_messages, render_prompt
from rgtrain.problems.evaluation_set import load_evaluation_problems

SUMS = {"dataset": "chain_sum", "size": 4}
AT_ENDPOINT = {"model_path": "openai://m", "base_url": "http://localhost:1/v1"}


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def write_file(tmp_path, model_folder):
    def write(**changes) -> Path:
        values = {
            "model_path": str(model_folder),
            "output_dir": str(tmp_path / "results"),
            "max_tokens": 16,
            "temperature": 0,
            "categories": [{"category": "arithmetic", "datasets": [SUMS]}],
        }
        values = {key: value for key, value in (values | changes).items() if value != "absent"}
        path = tmp_path / "evaluation.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def categories_of(*datasets: dict) -> list[dict]:
    return [{"category": "arithmetic", "datasets": list(datasets)}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_token": 5}, "unknown key 'max_token'.*did you mean 'max_tokens'"),
        ({"max_tokens": "absent"}, "max_tokens is missing: add 'max_tokens: ...'"),
        ({"output_dir": "absent"}, "output_dir is missing"),
        ({"categories": "absent"}, "categories is missing"),
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number from 1 up"),
        ({"max_tokens": "many"}, "max_tokens is 'many'; give a whole number from 1 up"),
        ({"temperature": -1}, r"temperature is -1; give 0 \(greedy\) or 0.01 and up"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0; give a number above 0 and up to 1"),
        ({"top_p": 1.5}, "top_p is 1.5; give a number above 0 and up to 1"),
        ({"dtype": "bf16"}, "dtype is 'bf16'; give one of auto, bfloat16, float16, float32"),
        ({"eval_repeats": 0}, "eval_repeats is 0; give a whole number from 1 up"),
        ({"save_metadata": "yes please"}, "save_metadata is 'yes please'; give true or false"),
        ({"developer_prompt": "DeepSeekOne"}, "unknown system prompt 'DeepSeekOne'; did you mean 'DeepSeekZero'"),
        ({"scorer": {"timeout": 5}}, "the scorer has no setting 'timeout'; did you mean 'timeout_s'"),
        ({"scorer": 5}, "scorer is 5; give a mapping"),
        ({"developer_role": "sytem"}, "unknown prompt role 'sytem'; did you mean 'system'"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0; give a whole number from 1 up"),
        ({"data_parallel_size": -1}, "data_parallel_size is -1; give a whole number from 1 up, or null"),
        ({"base_url": "http://localhost:1"}, "base_url is for model_path: openai://NAME"),
        ({"model_path": "openai://"}, "model_path 'openai://' names no model; write openai://NAME"),
        ({"model_path": "openai://m"}, "base_url has to say where it is, not None; write base_url: http"),
        (AT_ENDPOINT | {"endpoint": {"retries": 3}}, "endpoint has no setting 'retries'; .*max_retries"),
        (AT_ENDPOINT | {"endpoint": {"max_concurrent": 0}}, "endpoint's max_concurrent is 0; give a whole number"),
        ({"num_examples": -1}, "num_examples is -1; give a whole number from 0 up"),
        ({"model_path": "/no/such/model"}, "model_path '/no/such/model' does not exist; give a model folder"),
        ({"model_path": "tests/no-such-model"}, "model_path 'tests/no-such-model' does not exist"),
        ({"model_path": "smollm"}, "model_path 'smollm' does not exist; .*hub name such as Qwen/Qwen2.5-3B-Instruct"),
        ({"categories": []}, "categories: empty; list at least one"),
        ({"categories": {"arithmetic": {}}}, "categories: a dict; list at least one"),
        ({"categories": [{"category": "a", "datasets": []}]}, "datasets of category 'a': empty"),
        ({"categories": [{"datasets": [SUMS]}]}, "category 1 has the name None; give it one"),
        ({"categories": [{"category": "a", "dataset": []}]}, "unknown key 'dataset'; did you mean 'datasets'"),
        ({"categories": categories_of({"dataset": "chain_sums"})}, "unknown dataset 'chain_sums'; .*'chain_sum'"),
        ({"categories": categories_of(SUMS | {"parms": {}})}, "unknown key 'parms'; did you mean 'params'"),
        ({"categories": categories_of(SUMS | {"size": 0})}, "'chain_sum' of category 'arithmetic' has size 0; give"),
        ({"categories": categories_of(SUMS | {"seed": -1})}, "has seed -1; give a whole number from 0 to"),
        ({"categories": categories_of(SUMS | {"params": [2]})}, r"has params \[2\]; write a mapping"),
        ({"categories": categories_of(SUMS | {"params": {"min_term": 2}})}, "no parameter 'min_term'; did you mean"),
        ({"categories": categories_of(SUMS | {"params": {"min_terms": 0}})}, "dataset 'chain_sum' refuses"),
        ({"categories": categories_of(SUMS, SUMS)}, "stands twice in category 'arithmetic'"),
    ],
)
def test_bad_values_are_refused_with_the_fix(write_file, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_file(**changes))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "lacks config.json"),
        ("tokenizer.json", "lacks a tokenizer"),
        ("model.safetensors", "lacks weights"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(write_file, model_folder, missing, message):
    (model_folder / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        load_config(write_file())


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not valid YAML"), ("- 1", "holds a list; write a mapping"), ("", "holds a NoneType")],
)
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "evaluation.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read evaluation file"):
        load_config(tmp_path / "none.yaml")


def test_keys_left_out_have_the_published_values(write_file):
    config = load_config(write_file(categories=categories_of({"dataset": "chain_sum"})))
    assert (config.dtype, config.eval_repeats) == (compute_dtype(), 1)
    assert (config.developer_prompt, config.developer_role) == ("DeepSeekZero", "system")
    assert (config.datasets[0].size, config.datasets[0].seed) == (100, 42)


def test_the_command_line_replaces_values_of_the_file(write_file):
    config = load_config(write_file(), overrides=parse_overrides(["top_p=0.5", "developer_prompt=null"]))
    assert (config.top_p, config.developer_prompt) == (0.5, None)


def test_an_argument_that_sets_nothing_is_refused():
    with pytest.raises(ConfigError, match="cannot use the argument 'top_p'; write key=value"):
        parse_overrides(["top_p"])


def test_one_category_can_be_chosen(write_file):
    datasets = [{"dataset": "gcd", "size": 1}]
    path = write_file(categories=[*categories_of(SUMS), {"category": "other", "datasets": datasets}])
    assert [dataset.name for dataset in load_config(path, category="other").datasets] == ["gcd"]


def test_an_unknown_category_is_refused(write_file):
    with pytest.raises(ConfigError, match=r"unknown category 'algebra'.*choose from: arithmetic"):
        load_config(write_file(), category="algebra")


def test_a_hub_name_is_taken_as_it_is(write_file):
    assert load_config(write_file(model_path="Qwen/Qwen2.5-3B-Instruct")).model_path == "Qwen/Qwen2.5-3B-Instruct"


def test_greedy_answers_are_not_repeated(write_file):
    assert load_config(write_file(eval_repeats=3)).num_samples == 1
    assert load_config(write_file(eval_repeats=3, temperature=0.6)).num_samples == 3


def test_problems_are_reasoning_gyms_own_for_that_seed(write_file):
    problems = load_evaluation_problems(write_file())
    published = reasoning_gym.create_dataset("chain_sum", seed=42, size=4)
    assert [problem.question for problem in problems] == [published[i]["question"] for i in range(4)]


def test_every_problem_that_is_made_is_progress(write_file):
    steps = []
    problems = load_evaluation_problems(write_file(), progress=lambda: steps.append(None))
    assert len(steps) == len(problems)


def test_training_holds_out_the_very_problems_that_are_evaluated(write_file):
    path = write_file()
    evaluated = [problem.fingerprint for _, problem in problems_of(load_config(path))]
    assert [problem.fingerprint for problem in load_evaluation_problems(path)] == evaluated


def test_problems_of_a_file_are_made_without_torch(write_file):
    code = (
        "import sys; from rgtrain.problems.evaluation_set import load_evaluation_problems as load\n"
        f"load({str(write_file())!r}); assert not sys.modules.keys() & {{'torch', 'vllm', 'verl', 'ray'}}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)


def rendered(config: EvaluationConfig) -> tuple[list[PromptedProblem], list[list[int]], int]:
    prompted = prompt_problems(config)
    return prompted, *render_prompts(prompted, config, folder=Path(config.model_path))


def small_config(write_file, tiny_model, **changes) -> EvaluationConfig:
    return load_config(write_file(model_path=str(tiny_model), developer_prompt="direct", **changes))


def test_prompts_are_rendered_as_in_training(write_file, tiny_model):
    from transformers import AutoTokenizer

    prompted, token_ids, _ = rendered(small_config(write_file, tiny_model))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for item, ids in zip(prompted, token_ids, strict=True):
        messages = build_messages(item.problem.question, PromptStyle("direct"))
        assert ids == render_prompt(messages, tokenizer)


def test_the_needed_length_is_the_longest_prompt_plus_max_tokens(write_file, tiny_model):
    _, token_ids, num_tokens = rendered(small_config(write_file, tiny_model, max_tokens=100))
    assert num_tokens == max(map(len, token_ids)) + 100


def test_a_context_that_is_too_short_is_refused_naming_the_dataset(write_file, tiny_model):
    config = small_config(write_file, tiny_model, max_tokens=2040)
    with pytest.raises(
        ConfigError, match=r"context is 2048 tokens.*'chain_sum' of category 'arithmetic'.*max_tokens to"
    ):
        rendered(config)


def test_a_limit_of_the_users_own_counts_as_context(write_file, tiny_model):
    config = small_config(write_file, tiny_model, max_model_len=20)
    with pytest.raises(ConfigError, match=r"max_model_len is 20 tokens.*leave out these datasets"):
        rendered(config)


def test_a_worked_example_among_the_problems_is_refused(write_file, tiny_model):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    datasets = categories_of({"dataset": "chain_sum", "size": 500, "params": params})
    config = small_config(write_file, tiny_model, categories=datasets, num_examples=3)
    with pytest.raises(ConfigError, match=r"worked example of dataset 'chain_sum' is itself one of.*examples_seed"):
        prompt_problems(config)


def test_a_tokenizer_without_chat_template_is_refused(write_file, tiny_model, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "base-model"
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny_model / name)
    with pytest.raises(ConfigError, match="has no chat template; evaluate an instruction-tuned model"):
        rendered(small_config(write_file, folder))


def test_a_template_that_refuses_the_role_is_named_with_the_fix(write_file, tiny_model, tmp_path):
    folder = tmp_path / "strict-model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")
    with pytest.raises(ConfigError, match=r"refuses role 'system' .*developer_role: user"):
        rendered(small_config(write_file, folder))


def test_an_adapter_is_found_with_its_base_and_rank(write_adapter):
    with opened_model(str(write_adapter())) as model:
        assert model.adapter.name == "adapter"
        assert model.folder.name == "model"
        assert model.adapter_rank == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "can't load the adapter .* because of its use_dora; merge it"),
        ({"peft_type": "IA3"}, "because of its peft_type IA3"),
        ({"r": 1024}, "because of its r 1024"),
        ({"base_model_name_or_path": None}, "does not name its base model; set base_model"),
    ],
)
def test_an_adapter_that_vllm_cannot_load_is_refused(write_adapter, changes, message):
    with pytest.raises(ConfigError, match=message), opened_model(str(write_adapter(**changes))):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 200_000])
def test_a_damaged_adapter_is_named(write_adapter, content):
    folder = write_adapter()
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"adapter_config\.json is damaged .*; save the adapter again"):
        opened_model(str(folder)).__enter__()


def test_a_base_model_is_refused_for_what_is_no_adapter(model_folder):
    opened = opened_model(str(model_folder), base_model="other")
    with pytest.raises(ConfigError, match="base_model is for LoRA adapters"), opened:
        pass


@pytest.fixture
def write_adapter(tmp_path, model_folder):
    def write(**changes) -> Path:
        config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(model_folder)}
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        (folder / "adapter_model.safetensors").write_text("")
        return folder

    return write


def test_a_hub_model_that_was_fetched_before_needs_no_network(model_folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    cached = tmp_path / "hub" / "models--org--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model_folder, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with opened_model("org/small") as model:
        assert (model.folder / "config.json").is_file()
    with pytest.raises(ConfigError, match="cannot fetch model_path 'org/other'"), opened_model("org/other"):
        pass


def test_a_models_digest_changes_with_its_weights(model_folder):
    with opened_model(str(model_folder)) as model:
        before = model.digest()
        assert model.digest() == before
        (model_folder / "model.safetensors").write_text("other")
        assert model.digest() != before
