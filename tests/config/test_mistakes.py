"""A table of mistakes in settings, words of the command line and files, with the messages that refuse them."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from support.experiments import EXPERIMENTS, composed

from rgtrain.config import leaf_rules
from rgtrain.config.composition import checked_config, declared_tree, register_plugins
from rgtrain.config.hydra_errors import check_experiment, composition_errors_as_config_errors, parse_options
from rgtrain.config.leaf_rules import check_values
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.evaluation_set import read_evaluation_file

ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{node}" for node in ("actor", "rollout", "model"))

# A setting, and its message after "KEY is VALUE; ".
VALUES = {
    f"{ACTOR}.optim.lr=fast": "give a number above 0",
    f"{ACTOR}.optim.lr=-1": "give a number above 0",
    f"{ACTOR}.optim.lr=0": "give a number above 0",
    f"{ACTOR}.optim.lr=-0.0": "give a number above 0",
    f"{ACTOR}.optim.lr=nan": "give a number above 0",
    f"{ACTOR}.optim.lr=inf": "give a number above 0",
    f"{ACTOR}.optim.lr=true": "give a number above 0",
    f"{ACTOR}.optim.lr=null": "give a number above 0",
    f"{ACTOR}.optim.lr=[1e-5]": "give a number above 0",
    f'{ACTOR}.optim.lr="1e-5"': "give a number above 0, without quotes",
    f"{ACTOR}.optim.weight_decay=-0.1": "give a number from 0 up",
    f"{ACTOR}.optim.betas=[0.9,1.5]": "give a list of two numbers from 0 to below 1",
    f"{ACTOR}.optim.optimizer=AdamX": "did you mean 'Adam' or",
    f"{ACTOR}.optim.lr_scheduler_type=linear": "engine=fast takes constant or cosine; for 'linear', set engine=verl",
    f"{ACTOR}.entropy_coeff=-0.5": "give a number from 0 up",
    f"{ACTOR}.clip_ratio_c=1": "give a number above 1",
    f"{ACTOR}.use_kl_loss=yes": "give true or false",
    f"{ACTOR}.use_kl_loss=1": "give true or false",
    f"{ACTOR}.kl_loss_type=k4": "(choose from: abs, abs+, k1",
    f"{ACTOR}.loss_agg_mode=token_mean": "did you mean 'token-mean' or",
    f"{ACTOR}.policy_loss.loss_mode=gpso": "did you mean 'gspo'?",
    f"{ACTOR}.strategy=fsdpp": "did you mean 'fsdp' or 'fsdp2'?",
    f"{ACTOR}.strategy=megatron": "engine=fast takes fsdp or fsdp2; for 'megatron', set engine=verl",
    f"{ACTOR}.fsdp_config.model_dtype=bf17": "did you mean 'bf16'",
    f"{ACTOR}.fsdp_config.mixed_precision={{param_type:bf16}}": "give a mapping from param_dtype, reduce_dtype or",
    f"{MODEL}.lora_rank=eight": "give a whole number from 0 up",
    f"{MODEL}.lora_rank=-8": "give a whole number from 0 up",
    f"{MODEL}.path=null": "give a text",
    f"{ROLLOUT}.name=sglang": "engine=fast takes vllm; for 'sglang', set engine=verl",
    f"{ROLLOUT}.temperature=hot": "give a number above 0",
    f"{ROLLOUT}.top_p=1.5": "give a number above 0 and up to 1",
    f"{ROLLOUT}.top_k=-2": "give a whole number from 1 up, or -1 for all tokens",
    f"{ROLLOUT}.gpu_memory_utilization=90": "give a number above 0 and up to 1",
    f"{ROLLOUT}.n=0": "give a whole number from 1 up",
    "algorithm.adv_estimator=grpp": "did you mean 'grpo'?",
    "algorithm.gamma=2": "give a number from 0 to 1",
    "algorithm.kl_penalty=full": "(choose from: abs, abs+,",
    "algorithm.rollout_correction.rollout_is=tokens": "did you mean 'token'?",
    "data.validation_size=0": "give a whole number from 1 up",
    "data.train_batch_size=8.0": "give a whole number from 1 up",
    'data.train_batch_size="8"': "give a whole number from 1 up, without quotes",
    f"data.train_batch_size={10**30}": "give a whole number from 1 up, below 2^63",
    "data.held_out_files=null": "give a list of texts, [] for none",
    "data.held_out_files=[3]": "give a list of texts, [] for none",
    "data.mixture=chain_sum": "give a mapping",
    "data.prompt=3": "give a mapping with keys such as system_prompt",
    "data.prompt.role=sys": "did you mean 'system'?",
    "trainer.device=tpu": "did you mean 'cpu'? (choose from: cpu, cuda)",
    "trainer.logger=[wandbb]": "did you mean 'wandb' or",
    "trainer.logger=wandbb": "did you mean 'wandb' or",
    "trainer.total_training_steps=-3": "give a whole number from 1 up, or null",
    "trainer.total_training_steps=four": "give a whole number from 1 up, or null",
    "trainer.resume_mode=automatic": "did you mean 'auto'?",
    "trainer.save_freq=often": "give a whole number from 1 up, or -1 for never",
    "trainer.save_freq=0": "give a whole number from 1 up, or -1 for never",
    "trainer.watchdog=null": "give a mapping with keys such as report_after_s",
    "trainer.watchdog.end_after_s=0": "give seconds above 0, or null",
    "seed=abc": "give a whole number from 0 to 4294967295",
    "seed=-1": "give a whole number from 0 to 4294967295",
    "engine=slow": "(choose from: fast, verl)",
    "run_dir=7": "give a text",
    "reward.scorer.num_workers=1000000": "give a whole number from 1 to 1024",
}
# Words of the command line, and the message.
WORDS = {
    ("lr=3e-5",): "unknown key 'lr'; did you mean 'actor_rollout_ref.actor.optim.lr' or 'critic.optim.lr'?",
    ("data.train_batchsize=3",): "unknown key 'data.train_batchsize'; did you mean 'train_batch_size'",
    ("+data.train_batchsize=3",): "unknown key 'data.train_batchsize'; did you mean 'train_batch_size'",
    ("seed.x=3",): "unknown key 'seed.x'; seed is a single value without keys",
    ("~sed",): "unknown key 'sed'; did you mean 'seed'?",
    ("seed=???",): "seed is missing; give a whole number from 0 to 4294967295",
    ("~trainer.save_freq",): "trainer.save_freq is missing; do not delete it, give it a value",
    ("+seed=3",): "seed has a value already; write seed=3 without +",
    ("data.mixture.gcd.weight=1",): "data.mixture.gcd.weight is not set; correct its name, or write +data.mixture.gcd",
    ("model=qwen9",): "model has no choice 'qwen9'; did you mean 'qwen3_8b' or 'qwen3_4b'? (choose from: llama3.2_1b",
    ("model=[qwen3_4b,lor]",): "model has no choice 'lor'; did you mean 'lora'?",
    ("sead=1",): "unknown key 'sead'; did you mean 'seed'",
    ("modle=qwen3_4b",): "there is no group 'modle'; did you mean model=qwen3_4b?",
    ("model=null",): "model is null; (choose from: ",
    ("+debug=smoke",): "debug has a choice already; write debug=smoke without +",
    ("trainer.logger=wandb,tensorboard",): "for a list, write 'trainer.logger=[wandb,tensorboard]'; for a run ",
    ("seed=range(1,3)",): "'seed=range(1,3)' gives several values; for a run per value, add --multirun",
    ("trainer.logger=[wandb,", "tensorboard]"): "put the whole word in quotes, such as 'trainer.logger=[a, b]'",
    ("tensorboard]",): "'tensorboard]' is no setting; write key=value; a list with spaces needs quotes",
    ("data.prompt=[]",): "data.prompt is []; give a mapping",
    ("data.held_out_files={a:1}",): "data.held_out_files is {'a': 1}; give a list",
    ("data.prompt.system_prompt=a=b",): "cannot be read; quote it twice, as in 'data.prompt.system_prompt=\"a=b\"'",
    ("seed",): "'seed' is no setting; write key=value",
    ("seed==3",): "'seed==3' has two signs =; write seed=3",
    ("=3",): "'=3' has no key; write key=value, such as seed=3",
    ("--seed=3",): "unrecognized arguments: --seed=3; --help lists the options",
    ("seed=${sed}",): "seed is '${sed}': unknown key 'sed'; did you mean 'seed'?",
    ("seed=${data.seed}",): "seed is '${data.seed}': it refers to itself",
    ("run_dir=${nope:3}",): "run_dir is '${nope:3}': Unsupported interpolation type nope",
    ("seed=x", "data.train_size=0"): "data.train_size is 0; give a whole number from 1 up; seed is 'x'; give a whole",
}
HEAD = "defaults: [/base, /model: smollm2_135m, _self_]\n"
# The content of FILE.yaml, and the message.
FILES = {
    f"{HEAD}seed: 1\ndata:\n  seed: 3\nseed: 2\n": "FILE.yaml: the key 'seed' stands twice, in lines 2 and 5; keep one",
    f"{HEAD}data:\n\tseed: 3\n": "FILE.yaml, line 3, column 1: a tab; indent with spaces",
    f"{HEAD}data: {{seed: 3\n": "FILE.yaml, line 3, column 1: expected ',' or '}'",
    f"{HEAD}run_dir: a: b\n": "FILE.yaml, line 2, column 11: mapping values are not allowed here",
    f"{HEAD}# caf\udce9\n": "FILE.yaml is not UTF-8 text; save line 2 with its byte 0xe9 as UTF-8",
    "- 1\n": "FILE.yaml holds no mapping; write `key: value` lines",
    "": "FILE.yaml is empty",
    f"{HEAD}data: [1, 2]\n": "FILE.yaml: data is [1, 2]; give a mapping",
    f"{HEAD}sed: 3\n": "unknown key 'sed'; did you mean 'seed'?",
    f'{HEAD}trainer: {{save_freq: "50"}}\n': "save_freq is '50'; give a whole number from 1 up, or -1 for never, with",
    "defaults: [/base, /model: qwen9, _self_]\n": "'FILE' names 'model/qwen9' in its `defaults`; did you mean",
    "defaults: [/bse, _self_]\n": "'FILE' names 'bse' in its `defaults`; did you mean 'base'?",
    "defaults: [/base, override /modle: x, _self_]\n": "overrides the group 'modle', which has no choice yet; did you",
    "defaults: [/base, /algorithm: ppo, _self_]\n": "choose algorithm twice; write `override /algorithm: CHOICE`",
    "defaults: [FILE, _self_]\n": "name each other in their `defaults` in a circle",
    "seed: 3\n": "does not start from configs/base.yaml; put `defaults: [/base, _self_]` at its top",
}
# The options that name an experiment, and the message.
NAMES = {
    (
        "--config-name",
        "quikstart",
    ): "there is no experiment 'quikstart'; did you mean 'quickstart' or 'quickstart",
    ("--config-name", "games_qwen_3b"): "did you mean 'inter_generalisation/games_qwen_3b' or 'intra_gen",
    ("--config-name", "model/qwen3_4b"): "is a choice of a group and not an experiment; write model=qwen3_4b",
    (
        "--config-path",
        "/no/such/folder",
        "--config-name",
        "a",
    ): "the folder /no/such/folder does not exist; give a",
    ("--config-name",): "expected one argument; --help lists the options",
}


@pytest.fixture(scope="module")
def small() -> DictConfig:
    config = composed()
    OmegaConf.set_struct(config, False)
    return config


def refusal(*words: str, name: str = "small", folder: Path = EXPERIMENTS) -> str:
    """Return the message that refuses a command line."""
    register_plugins()
    with pytest.raises(ConfigError) as refused:
        options = parse_options(["--config-path", str(folder), "--config-name", name, *words])
        check_experiment(options)
        with initialize_config_dir(str(folder), version_base="1.3"), composition_errors_as_config_errors(options):
            checked_config(compose(name, overrides=[*options.overrides, "++trainer.experiment_name=test"]))
    return str(refused.value)


@pytest.mark.parametrize("word", VALUES)
def test_an_unusable_value_is_refused_with_the_allowed_ones(small, word):
    override = OverridesParser.create().parse_override(word)
    key = override.key_or_group
    # Copying the whole configuration takes longer than the check.
    before = OmegaConf.select(small, key)
    OmegaConf.update(small, key, override.value(), merge=False)
    try:
        with pytest.raises(ConfigError) as refused:
            check_values(small, declared=declared_tree(), interpolated=set())
    finally:
        OmegaConf.update(small, key, before, merge=False)
    message = str(refused.value)
    assert message.startswith(f"{key} is ")
    assert VALUES[word] in message
    assert "\n" not in message


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_mistake_on_the_command_line_is_explained(words):
    message = refusal(*words)
    assert WORDS[words] in message
    assert "\n" not in message


@pytest.mark.parametrize("content", FILES)
def test_a_mistake_in_a_file_is_explained(content, tmp_path):
    (tmp_path / "FILE.yaml").write_text(content, encoding="utf-8", errors="surrogateescape")
    message = refusal(name="FILE", folder=tmp_path)
    assert FILES[content] in message
    assert "\n" not in message


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_a_wrong_experiment_is_refused_with_the_nearest_names(words):
    with pytest.raises(ConfigError) as refused:
        check_experiment(parse_options(words))
    assert NAMES[words] in str(refused.value)


def test_the_table_has_at_least_sixty_mistakes():
    assert len(VALUES) + len(WORDS) + len(FILES) + len(NAMES) >= 60


def test_a_mistake_in_a_group_file_of_a_user_names_the_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text("# @package _global_\nseed: 1\nseed: 2\n")
    (tmp_path / "mine.yaml").write_text("defaults: [/base, /model: own, _self_]\n")
    message = refusal(name="mine", folder=tmp_path)
    assert "model/own.yaml: the key 'seed' stands twice, in lines 2 and 3" in message


def test_an_evaluation_file_with_a_key_twice_is_refused(tmp_path):
    (tmp_path / "evaluation.yaml").write_text("model: a\nmodel: b\n")
    with pytest.raises(ConfigError, match="the key 'model' stands twice, in lines 1 and 2"):
        read_evaluation_file(tmp_path / "evaluation.yaml")


def test_only_the_source_of_a_wrong_value_is_named():
    assert refusal(f"{ACTOR}.strategy=fsdpp", "algorithm=ppo").count("fsdpp") == 1


def test_a_single_value_becomes_a_list_of_one():
    config = composed("trainer.logger=wandb", "data.held_out_files=a.yaml", "data.allow_unsound_verifiers=gcd")
    assert (config.trainer.logger, config.data.held_out_files) == (["wandb"], ["a.yaml"])
    assert config.data.allow_unsound_verifiers == ["gcd"]


def test_the_engine_verl_takes_its_own_rollouts_and_strategies():
    composed("engine=verl", f"{ROLLOUT}.name=sglang", f"{ACTOR}.strategy=megatron", "trainer.device=npu")


def test_a_number_in_scientific_notation_is_a_number(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{HEAD}actor_rollout_ref: {{actor: {{optim: {{lr: 1e-5}}}}}}\n")
    assert composed(name="mine", config_dir=tmp_path).actor_rollout_ref.actor.optim.lr == 1e-5


def test_every_key_whose_default_is_null_has_a_rule():
    def leaves(section: DictConfig, path: str):
        for key in section:
            node, name = section._get_node(key), f"{path}{key}"
            if isinstance(node, DictConfig) and not node._is_none() and len(node):
                yield from leaves(node, f"{name}.")
            else:
                yield name

    tree = declared_tree()
    assert [
        key for key in leaves(tree, "") if leaf_rules.rule_for(key) is None and leaf_rules.default_of(tree, key) is None
    ] == []


def test_verls_names_are_those_of_its_registries():
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.rollout_corr_helper import SUPPORTED_ROLLOUT_RS_OPTIONS
    from verl.utils.tracking import Tracking

    assert set(leaf_rules.ADVANTAGE_ESTIMATORS) == set(ADV_ESTIMATOR_REGISTRY)
    assert set(leaf_rules.POLICY_LOSSES) == set(POLICY_LOSS_REGISTRY)
    assert set(leaf_rules.REJECTION_CRITERIA) == SUPPORTED_ROLLOUT_RS_OPTIONS
    assert set(leaf_rules.TRACKERS) == set(Tracking.supported_backend)


@pytest.mark.parametrize("words", [["--config-name", "quikstart"], ["--config-name", "quickstart", "lr=3"]])
def test_the_command_ends_with_one_line_and_exit_code_2(words, tmp_path):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
