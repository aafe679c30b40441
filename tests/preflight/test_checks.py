"""What bad input gets: one clear line, before anything heavy starts, and nothing is left behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from rgtrain import preflight
from rgtrain.checkpoints.checkpoint_store import CheckpointStore
from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight import machine_checks
from rgtrain.preflight.machine_checks import check_machine
from rgtrain.preflight.run_folder import check_resume, check_run_dir, check_run_folder, check_same_run
from rgtrain.provenance import masked_values

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"

register_plugins()


def plain(tiny_model: Path, run_dir: Path, *overrides: str) -> dict:
    words = [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={run_dir}", "trainer.experiment_name=test"]
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        config = checked_config(compose("small", overrides=["hardware=cpu", *words, *overrides]))
    return plain_config(config)


def check(config: dict) -> list[str]:
    return preflight.check(RunConfig.of(config))


def test_a_model_on_no_machine_is_checked_by_its_choices_shape(tmp_path):
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        words = ["model=qwen2.5_1.5b", "hardware=cpu", f"run_dir={tmp_path}", "trainer.experiment_name=test"]
        config = checked_config(compose("small", overrides=[*words, "data.max_response_length=40000"]))
    with pytest.raises(ConfigError, match="Qwen/Qwen2.5-1.5B-Instruct has a context of 32768"):
        preflight.check(RunConfig.of(plain_config(config)))


def test_a_good_experiment_passes_and_leaves_nothing(tiny_model, tmp_path):
    check(plain(tiny_model, tmp_path / "run"))
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
        ("data.prompt.role=sytem", "unknown prompt role 'sytem'; did you mean 'system'"),
        ("data.train_batch_size=12", "train_batch_size=12 is not a multiple of .*=8: make it 8 or 16"),
        ("actor_rollout_ref.rollout.n=1", "rollout.n=1: grpo compares the completions .* set it to 2 or more"),
        (
            "data.max_prompt_length=a",
            "data.max_prompt_length is 'a'; give a whole number from 1 up",
        ),
        ("trainer.n_gpus_per_node=3", r"ppo_mini_batch_size \* rollout.n=64 is not a multiple of the number of GPUs=3"),
        ("trainer.stop_within_s=0", "trainer.stop_within_s is 0; give seconds above 0"),
        ("trainer.watchdog.end_after_s=soon", "trainer.watchdog.end_after_s is 'soon'; give seconds above 0"),
        ("data.train_batch_size=0", "data.train_batch_size is 0; give a whole number from 1 up"),
        ("data.dataloader_num_workers=2", "data.dataloader_num_workers is 2; set it to 0: curricula"),
        ("data.train_size=4", "data.train_size=4 is less than data.train_batch_size=8"),
        ("data.held_out_files=[evaluation/nothing.yaml]", "data.held_out_files names evaluation/nothing.yaml"),
        ("algorithm.adv_estimator=gae", "gae needs a critic, and critic.enable is false: choose algorithm=ppo"),
        ("critic.enable=true", "critic.enable=true, but algorithm.adv_estimator=grpo reads no values"),
        ("data.max_response_length=2000", r"= 2256 tokens, but .* has a context of 2048: lower one .* to 1792 at most"),
        ("preflight=onyl", "preflight is 'onyl'; did you mean 'only'"),
        ("actor_rollout_ref.model.path=models/nothing/here", "model.path=models/nothing/here does not exist"),
    ],
)
def test_a_mistake_is_named_with_its_fix(tiny_model, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        check(plain(tiny_model, tmp_path / "run", override))


def test_a_metric_of_dynamic_sampling_that_no_completion_has_is_refused(tiny_model, tmp_path):
    parts = ["algorithm=dapo", "+reward.parts.length.weight=1"]
    check(plain(tiny_model, tmp_path / "run", *parts, "algorithm.filter_groups.metric=reward_length"))
    with pytest.raises(ConfigError, match="metric is 'accuracy'; .*acc, answered, reward, reward_accuracy"):
        check(plain(tiny_model, tmp_path / "run", *parts, "algorithm.filter_groups.metric=accuracy"))


def test_dynamic_sampling_by_partial_credit_that_is_not_paid_for_is_warned_about(tiny_model, tmp_path):
    words = ["algorithm=dapo", "reward=solved"]
    warnings = check(plain(tiny_model, tmp_path / "run", *words))
    assert [warning for warning in warnings if "algorithm.filter_groups.metric=solved" in warning]
    by_solved = check(plain(tiny_model, tmp_path / "run", *words, "algorithm.filter_groups.metric=solved"))
    assert not [warning for warning in by_solved if "filter_groups" in warning]


def test_a_mixture_given_as_a_list_is_refused(tiny_model, tmp_path):
    config = plain(tiny_model, tmp_path / "run")
    config["data"]["mixture"] = ["chain_sum"]
    with pytest.raises(ConfigError, match="the mixture is a list; write it as a mapping"):
        check(config)


def test_a_curriculum_for_a_dataset_without_one_is_refused(tiny_model, tmp_path):
    words = ["+data.mixture.acre.weight=1", "+data.curriculum.datasets.acre={}"]
    with pytest.raises(
        ConfigError, match="dataset 'acre' has no curriculum in Reasoning Gym: leave it out of data.cur"
    ):
        check(plain(tiny_model, tmp_path / "run", *words))


def test_weights_that_sum_to_zero_are_refused(tiny_model, tmp_path):
    zero = [f"data.mixture.{name}.weight=0" for name in ("chain_sum", "spell_backward")]
    with pytest.raises(ConfigError, match="the weights of chain_sum, spell_backward sum to 0"):
        check(plain(tiny_model, tmp_path / "run", *zero))


def test_a_dataset_that_pays_for_a_constant_answer_is_refused_unless_it_is_named(tiny_model, tmp_path):
    unsound = "+data.mixture.coin_flip.weight=1"
    with pytest.raises(ConfigError, match=r"'coin_flip' pays .*'0' earns .*data.allow_unsound_verifiers=\[coin_flip\]"):
        check(plain(tiny_model, tmp_path / "run", unsound))
    warnings = check(plain(tiny_model, tmp_path / "run", unsound, "data.allow_unsound_verifiers=[coin_flip]"))
    assert any("coin_flip" in warning and "'0' earns" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("timeout_s=0", "the scorer's timeout_s is 0; give seconds above 0"), ("num_workers=a", "num_workers is 'a'")],
)
def test_unusable_settings_of_the_scorer_are_refused(tiny_model, tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        check(plain(tiny_model, tmp_path / "run", f"reward.scorer.{setting}"))


def test_tensor_parallel_that_does_not_divide_the_heads_is_refused(tiny_model, tmp_path):
    parallel = ["actor_rollout_ref.rollout.tensor_model_parallel_size=8", "trainer.n_gpus_per_node=8"]
    with pytest.raises(
        ConfigError, match=r"size=8 does not divide the 4 attention heads of .*: set it to one of 1, 2, 4"
    ):
        check(plain(tiny_model, tmp_path / "run", *parallel))


def test_more_gpus_than_there_are_is_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU can be used: choose hardware=cpu"):
        check(plain(tiny_model, tmp_path / "run", "hardware=gpu"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "is no complete model: it has no config.json"),
        ("tokenizer_config.json", "is no complete model: it has no tokenizer_config.json"),
        ("tokenizer.json", "has no tokenizer: none of tokenizer.json, tokenizer.model, vocab.json is there"),
        ("chat_template.jinja", "has no chat template, so it is a base model: take its Instruct version"),
    ],
)
def test_an_incomplete_model_folder_is_refused(tiny_model, tmp_path, missing, message):
    folder = tmp_path / "model"
    folder.mkdir()
    assert (tiny_model / missing).is_file()
    for file in tiny_model.iterdir():
        if file.name != missing:
            (folder / file.name).symlink_to(file)
    with pytest.raises(ConfigError, match=message):
        check(plain(tiny_model, tmp_path / "run", f"actor_rollout_ref.model.path={folder}"))


@pytest.mark.parametrize(
    ("folder", "message"),
    [("somewhere", "give a folder named global_step_N"), ("global_step_3", "no complete checkpoint: it has no actor")],
)
def test_a_checkpoint_that_cannot_be_continued_is_refused(tiny_model, tmp_path, folder, message):
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path / folder}"]
    with pytest.raises(ConfigError, match=message):
        check(plain(tiny_model, tmp_path / "run", *resume))


def test_a_run_folder_that_cannot_be_written_is_refused(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to run_dir"):
        check(plain(tiny_model, tmp_path / "file" / "run"))


def test_the_command_exits_with_2_and_one_line_from_any_folder(tmp_path):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", str(EXPERIMENTS)]
    command += ["--config-name", "small", "data.mixture.chain_sum.weight=-1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: dataset 'chain_sum' has weight -1; a weight is a number from 0 up"
    assert not list(tmp_path.iterdir())


def test_a_run_folder_with_other_settings_is_refused(tiny_model, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(plain(tiny_model, run_dir)))
    check(plain(tiny_model, run_dir, "trainer.total_training_steps=9"))
    with pytest.raises(ConfigError, match=r"holds a run with other settings: .*seed \(1 there, 2 now\)"):
        check(plain(tiny_model, run_dir, "seed=2"))


def test_a_run_whose_secret_has_changed_is_the_same_run(tiny_model, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    configs = [plain(tiny_model, run_dir) for _ in range(2)]
    for config, secret in zip(configs, ("SECRET1", "SECRET2"), strict=True):
        config["data"]["api_key"] = secret
    (run_dir / "config.yaml").write_text(yaml.safe_dump(masked_values(configs[0])))
    check_run_folder(RunConfig.of(configs[1]))


def test_a_small_container_is_warned_about_or_refused_before_the_start(tiny_model, tmp_path, monkeypatch):
    config = RunConfig.of(plain(tiny_model, tmp_path / "run"))
    free = {"/dev/shm": 64_000_000, "/tmp": 50_000_000_000}
    monkeypatch.setattr(machine_checks, "_free_bytes", lambda folder: free[str(folder)])
    (warning,) = check_machine(config, temporary=Path("/tmp"))
    assert warning.startswith("/dev/shm has 64 MB free: Ray's objects go to /tmp") and "--shm-size=8g" in warning
    free["/tmp"] = 500_000_000
    with pytest.raises(
        ConfigError, match="/dev/shm has 64 MB free and /tmp has 500 MB free: .*--shm-size=8g, or set TMPDIR"
    ):
        check_machine(config, temporary=Path("/tmp"))
    free["/dev/shm"] = 8_000_000_000
    assert check_machine(config, temporary=Path("/tmp")) == []
    free["/tmp"] = 5_000_000
    with pytest.raises(ConfigError, match="/tmp has 5 MB free: the run's temporary files need 268 MB; set TMPDIR"):
        check_machine(config, temporary=Path("/tmp"))


def test_a_containers_memory_that_does_not_suffice_is_warned_about(tiny_model, tmp_path):
    config = RunConfig.of(plain(tiny_model, tmp_path / "run"))
    (warning,) = check_machine(config, memory=2_000_000_000)
    assert "this machine or its container allows 2 GB" in warning
    assert check_machine(config, memory=64_000_000_000) == []


@pytest.mark.parametrize(
    "words", [["hardware=8x80gb"], ["ray_kwargs.ray_init.address=other:6379"], ["trainer.nnodes=2"]]
)
def test_a_run_for_other_hardware_is_not_judged_by_this_machine(tiny_model, tmp_path, words):
    config = RunConfig.of(plain(tiny_model, tmp_path / "run", *words))
    assert check_machine(config, shared_memory=tmp_path / "none", temporary=tmp_path / "none", memory=1) == []


SETTINGS = {"seed": 1, "data": {"train_size": 8}, "trainer": {"resume_mode": "auto"}}


@pytest.mark.parametrize("content", [b"", b"seed: 1\ndata: {train", b"\0" * 50, b"\xff", b"seed", b"seed: 1\n", b"- 1"])
def test_a_damaged_configuration_in_the_run_folder_is_named_with_the_fix(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config.yaml' is damaged .* delete the file: the run then continues"):
        check_same_run(SETTINGS, tmp_path)
    (tmp_path / "config.yaml").unlink()
    check_same_run(SETTINGS, tmp_path)


def test_a_folder_that_is_linked_to_a_missing_disk_is_refused_before_the_start(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "other disk")
    with pytest.raises(ConfigError, match=r"trainer.default_local_dir=.* is a link to .* which does not exist"):
        check_run_dir(tmp_path / "run" / "checkpoints", key="trainer.default_local_dir")


def test_a_damaged_checkpoint_that_is_named_to_resume_from_is_refused(tmp_path):
    store = CheckpointStore(tmp_path, keep=None, say=print)
    with store.saving(3) as staging:
        (staging / "global_step_3" / "actor").mkdir(parents=True)
        (staging / "global_step_3" / "data.pt").write_text("a sampler")
    check_resume(f"{tmp_path}/global_step_3/")
    (tmp_path / "global_step_3" / "data.pt").write_text("A sampler")
    with pytest.raises(ConfigError, match=r"global_step_3/ is damaged: data.pt is damaged"):
        check_resume(f"{tmp_path}/global_step_3/")
