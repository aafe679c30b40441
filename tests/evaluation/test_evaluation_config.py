"""The keys of an evaluation file, and the values that are refused before a model is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.evaluation_files import SUMS, categories_of

from rgtrain.errors import ConfigError
from rgtrain.evaluation.declared_keys import keys_of
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.evaluation_config import KEYS, load_config, parse_overrides
from rgtrain.machine.devices import compute_dtype
from rgtrain.paths import PROJECT_ROOT

AT_ENDPOINT = {"model_path": "openai://m", "base_url": "http://localhost:1/v1"}


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_key_has_a_description_of_one_line_and_a_rule_in_words(key):
    for text in (key.description, key.rule.words):
        assert text.strip() and "\n" not in text and not text.endswith(".")


@pytest.mark.parametrize("name", KEYS)
def test_every_key_refuses_an_invalid_value_and_is_named_in_the_error(write_file, name):
    with pytest.raises(ConfigError, match=f"^{name}(:| is) "):
        load_config(write_file(**{name: -2.5}))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.is_required])
def test_a_required_key_that_is_left_out_is_named(write_file, name):
    with pytest.raises(ConfigError, match=f"^{name} is missing: add '{name}: ...' to .* or {name}=... to the command"):
        load_config(write_file(**{name: "absent"}))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if not key.is_required])
def test_every_default_is_an_allowed_value(name):
    KEYS[name].check(KEYS[name].default)


def test_the_help_describes_every_key_and_every_setting_of_an_endpoint():
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "evaluate_model.py", "--help"]
    shown = subprocess.check_output(command, text=True)
    words = " ".join(shown.split())
    for name, key in [*KEYS.items(), *keys_of(EndpointSettings).items()]:
        assert f"\n  {name} " in shown
        assert f"{key.description} ({key.rule.words}; " in words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_token": 5}, "unknown key 'max_token'.*did you mean 'max_tokens'"),
        ({"max_tokens": "absent"}, "max_tokens is missing: add 'max_tokens: ...'"),
        ({"output_dir": "absent"}, "output_dir is missing"),
        ({"categories": "absent"}, "categories is missing"),
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number from 1 up"),
        ({"max_tokens": "many"}, "max_tokens is 'many'; give a whole number from 1 up"),
        ({"temperature": -1}, r"temperature is -1; give 0 \(greedy\), or a number from 0.01 to 2"),
        ({"temperature": 2.5}, r"temperature is 2.5; give 0 \(greedy\), or a number from 0.01 to 2"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0; give a number above 0 and up to 1"),
        ({"top_p": 1.5}, "top_p is 1.5; give a number above 0 and up to 1"),
        ({"top_k": 0}, "top_k is 0; give a whole number from 1 up, or null or -1 for all tokens"),
        ({"min_p": 1.5}, "min_p is 1.5; give a number from 0 to 1, or null for no effect"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; give a number above 0 and up to 10"),
        ({"presence_penalty": 3}, "presence_penalty is 3; give a number from -2 to 2"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1'; give a number from -2 to 2"),
        ({"stop": [1]}, r"stop is \[1\]; give a text, or a list of texts"),
        ({"stop": ""}, "stop is ''; give a text, or a list of texts"),
        ({"stop": "</answer>"}, "stop is '</answer>'; .* none of which overlaps with <answer> or </answer>"),
        ({"stop": ["Question:", ">\n"]}, "stop is .*; .* none of which overlaps with <answer> or </answer>"),
        ({"limit": 0}, "limit is 0; give a whole number from 1 up, or null for all problems"),
        ({"size": {"chain_sums": 5}}, "size names the dataset 'chain_sums'; did you mean 'chain_sum'"),
        ({"size": {"chain_sum": 0}}, "the key size, for dataset 'chain_sum', has size 0; give a whole number from 1"),
        ({"size": 10**9}, "the key size, for dataset 'chain_sum', has size 1000000000; give a whole number from 1"),
        ({"dtype": "bf16"}, "dtype is 'bf16'; give one of auto, bfloat16, float16, float32"),
        ({"eval_repeats": 0}, "eval_repeats is 0; give a whole number from 1 up"),
        ({"save_metadata": "yes please"}, "save_metadata is 'yes please'; give true or false"),
        ({"developer_prompt": "DeepSeekOne"}, "unknown system prompt 'DeepSeekOne'; did you mean 'DeepSeekZero'"),
        ({"scorer": {"timeout": 5}}, "the scorer has no setting 'timeout'; did you mean 'timeout_s'"),
        ({"scorer": 5}, "scorer is 5; give a mapping"),
        ({"developer_role": "sytem"}, "unknown prompt role 'sytem'; did you mean 'system'"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0; give a whole number from 1 up"),
        ({"data_parallel_size": -1}, "data_parallel_size is -1; give a whole number from 1 up, or null"),
        ({"base_url": "http://localhost:1"}, r"base_url is only for models behind an endpoint \(openai://NAME\), but"),
        ({"model_path": "openai://"}, "model_path 'openai://' names no model; write openai://NAME"),
        ({"model_path": "openai://m"}, "base_url is None; set base_url to an address such as http"),
        (AT_ENDPOINT | {"endpoint": {"retries": 3}}, "endpoint has no setting 'retries'; .*max_retries"),
        (AT_ENDPOINT | {"endpoint": {"max_concurrent": 0}}, "endpoint's max_concurrent is 0; give a whole number"),
        ({"num_examples": -1}, "num_examples is -1; give a whole number from 0 up"),
        ({"model_path": "/no/such/model"}, "model_path '/no/such/model' does not exist; give a model folder"),
        ({"model_path": "tests/no-such-model"}, "model_path 'tests/no-such-model' does not exist"),
        ({"model_path": "smollm"}, "model_path 'smollm' does not exist; .*hub name such as Qwen/Qwen2.5-3B-Instruct"),
        ({"categories": []}, "categories is empty; list at least one"),
        ({"categories": {"arithmetic": {}}}, "categories is a dict; list at least one"),
        ({"categories": [{"category": "a", "datasets": []}]}, "datasets of category 'a' is empty"),
        ({"categories": [{"datasets": [SUMS]}]}, "category 1 has the name None; write a name"),
        ({"categories": [{"category": "a", "dataset": []}]}, "unknown key 'dataset'; did you mean 'datasets'"),
        ({"categories": categories_of({"dataset": "chain_sums"})}, "unknown dataset 'chain_sums'; .*'chain_sum'"),
        ({"categories": categories_of(SUMS | {"parms": {}})}, "unknown key 'parms'; did you mean 'params'"),
        ({"categories": categories_of(SUMS | {"size": 0})}, "'chain_sum' of category 'arithmetic' has size 0; give"),
        ({"categories": categories_of(SUMS | {"seed": -1})}, "has seed -1; give a whole number from 0 to"),
        ({"categories": categories_of(SUMS | {"params": [2]})}, r"has params \[2\]; write a mapping"),
        ({"categories": categories_of(SUMS | {"params": {"min_term": 2}})}, "no parameter 'min_term'; did you mean"),
        ({"categories": categories_of(SUMS | {"params": {"min_terms": 0}})}, "dataset 'chain_sum' refuses"),
        ({"categories": categories_of(SUMS, SUMS)}, "is listed twice in category 'arithmetic'"),
    ],
)
def test_bad_values_are_refused_with_the_fix(write_file, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_file(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not valid YAML"), ("- 1", "holds a list; write a mapping"), ("", "holds a NoneType")],
)
def test_a_file_without_a_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "evaluation.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read evaluation file"):
        load_config(tmp_path / "none.yaml")


def test_omitted_keys_have_the_published_values(write_file):
    config = load_config(write_file(categories=categories_of({"dataset": "chain_sum"})))
    assert (config.dtype, config.eval_repeats) == (compute_dtype(), 1)
    assert (config.developer_prompt, config.developer_role) == ("DeepSeekZero", "system")
    assert (config.datasets[0].size, config.datasets[0].seed) == (100, 42)


def test_the_command_line_overrides_the_file(write_file):
    config = load_config(write_file(), overrides=parse_overrides(["top_p=0.5", "developer_prompt=null"]))
    assert (config.top_p, config.developer_prompt) == (0.5, None)


def test_an_argument_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="cannot use the argument 'top_p'; write key=value"):
        parse_overrides(["top_p"])


def test_one_category_can_be_chosen(write_file):
    datasets = [{"dataset": "gcd", "size": 1}]
    path = write_file(categories=[*categories_of(SUMS), {"category": "other", "datasets": datasets}])
    assert [dataset.name for dataset in load_config(path, category="other").datasets] == ["gcd"]


def test_an_unknown_category_is_refused(write_file):
    with pytest.raises(ConfigError, match=r"unknown category 'algebra'.*choose from: arithmetic"):
        load_config(write_file(), category="algebra")


def test_greedy_answers_are_not_repeated(write_file):
    assert load_config(write_file(eval_repeats=3)).num_samples == 1
    assert load_config(write_file(eval_repeats=3, temperature=0.6)).num_samples == 3


def test_neutral_sampling_values_are_those_of_a_file_that_leaves_them_out(write_file):
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0.0, "frequency_penalty": 0}
    assert load_config(write_file(**neutral, stop=[])) == load_config(write_file())


def test_sampling_has_every_parameter_of_the_file(write_file):
    given = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    sampling = load_config(write_file(**given, stop="Question:")).sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert sampling.stop == ("Question:",)


def test_sizes_are_replaced_for_all_datasets_or_for_some(write_file):
    path = write_file(categories=categories_of(SUMS, {"dataset": "gcd", "size": 3}))
    sizes = lambda size: [d.size for d in load_config(path, overrides={"size": size}).datasets]  # noqa: E731
    assert [sizes(7), sizes({"gcd": 9}), sizes(None)] == [[7, 7], [SUMS["size"], 9], [SUMS["size"], 3]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, PROJECT_ROOT / "outputs/evaluation"),
        ({"output_dir": "outputs/mine"}, Path("outputs/mine")),
        ({"output_dir": "~/mine"}, Path.home() / "mine"),
    ],
)
def test_a_file_of_the_project_writes_into_the_project_and_the_command_line_into_the_current_folder(
    monkeypatch, overrides, expected
):
    monkeypatch.chdir(PROJECT_ROOT / "evaluation")
    config = load_config(Path("quickstart.yaml"), overrides=AT_ENDPOINT | overrides)
    assert config.output_dir == expected
    ignored = subprocess.run(["git", "check-ignore", "-q", config.results_folder], check=False)
    # Without git, there is nothing to ignore.
    assert ignored.returncode in (0, 128) or expected.is_relative_to(Path.home() / "mine")


def test_another_file_writes_into_the_current_folder(write_file):
    assert load_config(write_file(output_dir="outputs")).output_dir == Path("outputs")


def test_the_packages_of_an_evaluation_are_imported_before_its_datasets_are_read(write_file, monkeypatch, tmp_path):
    from reasoning_gym.factory import DATASETS

    from rgtrain.problems import plugins

    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "package_of_evaluation.py").write_text(
        "from reasoning_gym.factory import DATASETS\nDATASETS['of_package'] = DATASETS['gcd']\n"
    )
    categories = categories_of({"dataset": "of_package", "size": 1})
    with pytest.raises(ConfigError, match="unknown dataset 'of_package'"):
        load_config(write_file(categories=categories))
    try:
        config = load_config(write_file(categories=categories, plugins="package_of_evaluation"))
    finally:
        DATASETS.pop("of_package", None)
    assert config.plugins == ("package_of_evaluation",)
    with pytest.raises(ConfigError, match="plugin 'no_such_package' cannot be imported"):
        load_config(write_file(plugins=["no_such_package"]))
