"""Samples of supervised runs are prompts of rollouts with right answers, and only answers are trained."""

import re
from copy import copy
from dataclasses import replace
from functools import cache

import pytest
import yaml
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from rgtrain.checkpoints.supervised_run import MODEL_FOLDER, SFT_CONFIG
from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import DataConfig, RunConfig, plain_config, read_section
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight.sft_checks import check_sft
from rgtrain.preflight.sft_keys import without_effect
from rgtrain.problems.scoring.score import Score
from rgtrain.training.dataset import TRAIN, ReasoningGymDataset
from rgtrain.training.sft.right_answer_dataset import RightAnswerDataset
from rgtrain.training.sft.right_answers import AnsweredProblems
from rgtrain.training.sft.sft_settings import sft_config

register_plugins()


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@cache
def run_config(*overrides: str):
    with initialize_config_dir(str(PROJECT_ROOT / "tests" / "experiments"), version_base="1.3"):
        words = ["trainer.experiment_name=test", "hardware=cpu", *overrides]
        return checked_config(compose("small", overrides=words))


def run_data(*overrides: str) -> DataConfig:
    return read_section(DataConfig, plain_config(run_config(*overrides).data), key="data")


def samples(tokenizer, num_samples: int, *, engine: str = "fast") -> list[dict]:
    config = run_config().copy()
    config.engine = engine
    data = sft_config(config, num_steps=num_samples).data
    dataset = RightAnswerDataset("train", tokenizer, data, max_samples=data.train_max_samples)
    try:
        return dataset.__getitems__(range(num_samples))
    finally:
        dataset.close()


def test_a_sample_is_the_prompt_of_a_rollout_and_its_right_answer(tokenizer):
    rollouts = ReasoningGymDataset(TRAIN, tokenizer=tokenizer, config=run_config().data)
    for index, sample in enumerate(samples(tokenizer, 20)):
        row = rollouts[index]
        assert sample["prompts"].tolist() == row["extra_info"]["prompt_ids"]
        answer = f"<answer>{row['reward_model']['ground_truth']}</answer>{tokenizer.eos_token}"
        assert tokenizer.decode(sample["responses"]) == answer
        assert sample["responses"][-1] == tokenizer.eos_token_id
        assert sample["input_ids"].tolist() == [*sample["prompts"], *sample["responses"]]
        assert sample["position_ids"].tolist() == list(range(len(sample["input_ids"])))


@pytest.mark.parametrize("engine", ["fast", "verl"])
def test_only_tokens_of_the_answer_count(tokenizer, engine):
    [sample] = samples(tokenizer, 1, engine=engine)
    num_prompt = len(sample["prompts"]) if engine == "verl" else 0
    assert sample["loss_mask"].tolist() == [0] * num_prompt + [1] * len(sample["responses"])


def test_prompts_that_drop_their_examples_are_taught_without_them(tokenizer, scorer):
    data = run_data()
    data = replace(data, prompt={**data.prompt, "examples_until_step": 3})
    [answered] = AnsweredProblems(data, tokenizer, scorer).at([0])
    assert tokenizer.decode(answered.prompt_ids).count("<|im_start|>assistant") == 1


class OnlyEvenIsRight:
    """A scorer that accepts only even sums."""

    def score_many(self, pairs):
        return [Score(1.0 if int(answer) % 2 == 0 else 0.5) for answer, _ in pairs]


def test_a_problem_whose_answer_does_not_score_1_is_replaced(tokenizer, scorer):
    data = run_data("~data.mixture.spell_backward")
    drawn = AnsweredProblems(data, tokenizer, OnlyEvenIsRight()).at(range(20))
    assert all(int(one.problem.entry["answer"]) % 2 == 0 for one in drawn)
    all_right = AnsweredProblems(data, tokenizer, scorer).at(range(20))
    kept = [one for one in all_right if int(one.problem.entry["answer"]) % 2 == 0]
    assert 0 < len(kept) < 20
    assert {one.problem.digest for one in kept} <= {one.problem.digest for one in drawn}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            [
                "+data.mixture.propositional_logic={}",
                "~data.mixture.chain_sum",
                "~data.mixture.spell_backward",
                "data.prompt.num_examples=0",
            ],
            r"\d+ have no answer",
        ),
        (["data.max_response_length=3"], r"\d+ have answers over data.max_response_length"),
    ],
)
def test_a_dataset_without_usable_answers_is_refused(tokenizer, scorer, words, reason):
    data = run_data(*words)
    with pytest.raises(ConfigError, match=f"gave no problem with a right answer in 200 tries, of which {reason}"):
        AnsweredProblems(data, tokenizer, scorer).first_of_datasets()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.n_gpus_per_node=2"], "runs on one GPU; set both to 1"),
        (
            ["+data.curriculum.datasets={spell_backward: {start: {word_len: 0}, num_levels: 2}}"],
            "a curriculum needs the scores of rollouts",
        ),
        (["actor_rollout_ref.model.lora_rank=8"], "trains all parameters; set it to 0"),
        (["model.template_opens_thinking=true"], "right answers come without thinking"),
        (["data.train_size=4"], "exceeds data.train_size=4"),
        (["trainer.val_only=true"], "run train_grpo.py with trainer.val_only=true"),
        (["trainer.resume_mode=resume_path"], "starts from a model"),
        (["mixture_policy=adaptive"], "set mixture_policy=fixed"),
        (["debug=profile"], "has no profile"),
        (["actor_rollout_ref.model.lora_adapter_path=adapter"], "merge the adapter"),
        (["engine=verl", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=50"], "raise the first to that number"),
    ],
)
def test_settings_of_reinforcement_learning_alone_are_refused(tiny_model, words, message):
    config = RunConfig.of(plain_config(run_config(f"actor_rollout_ref.model.path={tiny_model}", *words)))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sft(config)


def test_a_finished_folder_is_bound_to_the_settings_that_act(tiny_model, tmp_path):
    words = [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={tmp_path}"]
    (tmp_path / SFT_CONFIG).touch()
    (tmp_path / MODEL_FOLDER).mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain_config(run_config(*words))))
    check_sft(RunConfig.of(plain_config(run_config(*words, "actor_rollout_ref.rollout.n=4"))))
    changed = RunConfig.of(plain_config(run_config(*words, "actor_rollout_ref.actor.optim.lr=0.5")))
    with pytest.raises(ConfigError, match=r"a model of other settings, actor_rollout_ref\.actor\.optim\.lr \("):
        check_sft(changed)


def test_settings_on_the_command_line_without_effect_are_named():
    words = ["+trainer.save_freq=5", "algorithm=ppo", "reward=solved", "~actor_rollout_ref.rollout.n", "data.seed=3"]
    named = "trainer.save_freq, algorithm, reward, actor_rollout_ref.rollout.n"
    assert without_effect(words) == [f"without effect in supervised fine-tuning: {named}"]
    assert without_effect(["model=FOLDER", "run_dir=runs/one", "reward.scorer.num_workers=1"]) == []


def test_a_tokenizer_without_an_end_is_refused(tokenizer, scorer):
    endless = copy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="has no end-of-sequence token"):
        AnsweredProblems(run_data(), endless, scorer)


def test_the_folder_of_a_run_of_rollouts_is_refused(tiny_model, tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    words = [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"holds a run of train_grpo\.py; set run_dir=ANOTHER"):
        check_sft(RunConfig.of(plain_config(run_config(*words))))
