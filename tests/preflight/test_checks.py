"""Bad input is refused with one clear line before anything heavy starts, and no file is written."""

import subprocess
import sys

import pytest
from support.experiments import EXPERIMENTS, small_with_model
from support.preflights import check_plain

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT


def test_a_good_experiment_passes_and_writes_no_file(tiny_model, tmp_path):
    check_plain(small_with_model(tiny_model, tmp_path / "run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+data.mixture.chain_sums.weight=1", "unknown dataset 'chain_sums'; did you mean 'chain_sum'"),
        ("+data.mixture.chain_sum.config.max_term=3", "'chain_sum' has no parameter 'max_term'; did you mean 'max_ter"),
        ("data.mixture.chain_sum.config.min_terms=9", "'chain_sum' refuses .*max_terms must be >= min_terms"),
        ("data.mixture.chain_sum.weight=-1", "'chain_sum' has weight -1; a weight is a number from 0 up"),
        ("+reward.parts.lenght.weight=1", "unknown reward 'lenght'; did you mean 'length'"),
        ("+reward.parts.length.max_length=1", "reward 'length' has no argument 'max_length'; did you mean 'max_len'"),
        ("data.prompt.system_prompt=DeepSeekZer", "unknown system prompt 'DeepSeekZer'; did you mean 'DeepSeekZero'"),
        ("data.prompt.role=sytem", "data.prompt.role is 'sytem'; did you mean 'system'"),
        (
            "data.max_prompt_length=a",
            "data.max_prompt_length is 'a'; give a whole number from 1 up",
        ),
        ("trainer.stop_within_s=0", "trainer.stop_within_s is 0; give seconds above 0"),
        ("trainer.watchdog.end_after_s=soon", "trainer.watchdog.end_after_s is 'soon'; give seconds above 0"),
        ("data.train_batch_size=0", "data.train_batch_size is 0; give a whole number from 1 up"),
        ("data.dataloader_num_workers=2", "data.dataloader_num_workers is 2; set it to 0, because curricula"),
        ("data.train_size=4", "data.train_size=4 is less than data.train_batch_size=8; raise data.train_size"),
        (
            "data.held_out_files=[evaluation/nothing.yaml]",
            "data.held_out_files names evaluation/nothing.yaml, which is not a file",
        ),
        (
            "data.validation_files=[evaluation/nothing.yaml]",
            "data.validation_files names evaluation/nothing.yaml, which is not a file",
        ),
        ("preflight=onyl", "preflight is 'onyl'; did you mean 'only'"),
    ],
)
def test_a_mistake_is_reported_with_its_fix(tiny_model, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path / "run", override))


def test_own_rewards_are_called_with_problems_of_the_run(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "trial_rewards.py").write_text(
        "def prompt(messages, question, max_tokens): return messages[-1]['content'].index(question) + max_tokens\n"
        "def difficulty(entry): return entry['metadata']['level']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trial_rewards", raising=False)
    names = [r"pkg\://trial_rewards." + name for name in ("prompt", "difficulty")]
    words = [f"+reward.parts={{{names[0]}: {{}}, {names[1]}: {{}}}}"]
    config = small_with_model(tiny_model, tmp_path / "run", *words)
    with pytest.raises(ConfigError, match="trial_rewards.difficulty' fails in a trial: KeyError: 'level'; "):
        check_plain(config)


def test_an_unknown_metric_for_dynamic_sampling_is_refused(tiny_model, tmp_path):
    parts = ["algorithm=dapo", "+reward.parts.length.weight=1"]
    check_plain(small_with_model(tiny_model, tmp_path / "run", *parts, "algorithm.filter_groups.metric=reward_length"))
    with pytest.raises(ConfigError, match="metric is 'accuracy'; .*acc, answered, reward, reward_accuracy"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *parts, "algorithm.filter_groups.metric=accuracy"))


def test_a_warning_if_dynamic_sampling_uses_partial_credit_that_the_reward_does_not_pay(tiny_model, tmp_path):
    words = ["algorithm=dapo", "reward=solved"]
    warnings = check_plain(small_with_model(tiny_model, tmp_path / "run", *words))
    assert [warning for warning in warnings if "algorithm.filter_groups.metric=solved" in warning]
    by_solved = check_plain(
        small_with_model(tiny_model, tmp_path / "run", *words, "algorithm.filter_groups.metric=solved")
    )
    assert not [warning for warning in by_solved if "filter_groups" in warning]


def test_a_mixture_given_as_a_list_is_refused(tiny_model, tmp_path):
    config = small_with_model(tiny_model, tmp_path / "run")
    config["data"]["mixture"] = ["chain_sum"]
    with pytest.raises(ConfigError, match="the mixture is a list; write a mapping"):
        check_plain(config)


def test_a_curriculum_for_a_dataset_without_one_is_refused(tiny_model, tmp_path):
    words = ["+data.mixture.acre.weight=1", "+data.curriculum.datasets.acre={}"]
    with pytest.raises(ConfigError, match="dataset 'acre' has no curriculum in Reasoning Gym; remove it from data.cur"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *words))


def test_weights_that_sum_to_zero_are_refused(tiny_model, tmp_path):
    zero = [f"data.mixture.{name}.weight=0" for name in ("chain_sum", "spell_backward")]
    with pytest.raises(ConfigError, match="the weights of chain_sum, spell_backward sum to 0"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *zero))


def test_a_dataset_that_pays_for_a_constant_answer_is_refused_unless_allowed(tiny_model, tmp_path):
    unsound = "+data.mixture.coin_flip.weight=1"
    with pytest.raises(ConfigError, match=r"'coin_flip' pays .*'0' earns .*data.allow_unsound_verifiers=\[coin_flip\]"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", unsound))
    warnings = check_plain(
        small_with_model(tiny_model, tmp_path / "run", unsound, "data.allow_unsound_verifiers=[coin_flip]")
    )
    assert any("coin_flip" in warning and "'0' earns" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("timeout_s=0", "scorer.timeout_s is 0; give seconds above 0"), ("num_workers=a", "num_workers is 'a'")],
)
def test_unusable_settings_of_the_scorer_are_refused(tiny_model, tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path / "run", f"reward.scorer.{setting}"))


def test_the_command_exits_with_code_2_and_one_line_in_any_folder(tmp_path):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", str(EXPERIMENTS)]
    command += ["--config-name", "small", "data.mixture.chain_sum.weight=-1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: dataset 'chain_sum' has weight -1; a weight is a number from 0 up"
    assert not list(tmp_path.iterdir())


def test_a_validation_prompt_that_is_too_long_is_refused(tiny_model, tmp_path):
    path = tmp_path / "validation.yaml"
    path.write_text(
        "categories: [{category: a, datasets: [{dataset: gcd, size: 2}, {dataset: game_of_life, size: 2}]}]"
    )
    words = [f"data.validation_files=['{path}']", "data.max_prompt_length=200"]
    with pytest.raises(ConfigError, match=r"dataset 'game_of_life' has a prompt of \d+ tokens, .* is 200 .*; set data"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *words))
