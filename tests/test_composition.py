"""Every experiment composes, on any hardware, from any folder; keys that nobody declared are refused."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain.composition import checked_config, register_plugins
from rgtrain.errors import ConfigError
from rgtrain.paths import CONFIGS

register_plugins()

_GROUPS = {"algorithm", "debug", "hardware", "model", "reward"}
EXPERIMENTS = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.name != "base.yaml" and path.relative_to(CONFIGS).parts[0] not in _GROUPS
)
NAMES = [str(path.relative_to(CONFIGS).with_suffix("")) for path in EXPERIMENTS]


def composed(name: str, *overrides: str, config_dir: Path = CONFIGS) -> DictConfig:
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        # Hydra's own job name is not set outside of hydra.main.
        return checked_config(compose(name, overrides=[*overrides, "trainer.experiment_name=test"]))


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_composes_on_every_hardware(name, hardware):
    config = composed(name, f"hardware={hardware}")
    assert config.trainer.device == {"cpu": "cpu", "gpu": "cuda"}[hardware]
    assert not OmegaConf.missing_keys(config.data)


def test_a_profile_is_kept_in_the_runs_folder():
    config = composed("quickstart", "+debug=profile", "run_dir=runs/a")
    assert config.global_profiler.save_path == "runs/a/profile"
    assert config.actor_rollout_ref.actor.profiler.enable


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_an_experiment_composes_alike_from_its_own_folder(path):
    from_root = composed(str(path.relative_to(CONFIGS).with_suffix("")))
    assert composed(path.stem, config_dir=path.parent) == from_root


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_an_experiment_is_at_most_25_lines(path):
    assert len(path.read_text().splitlines()) <= 25


def test_an_experiment_outside_the_project_finds_its_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [/base, /model: smollm2_135m, _self_]\nseed: 7\n")
    assert composed("mine", config_dir=tmp_path).data.seed == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sed: 3", "unknown key 'sed'; did you mean 'seed'"),
        ("data: {train_batchsize: 3}", "unknown key 'data.train_batchsize'; did you mean 'train_batch_size'"),
        ("data: {prompt: {num_example: 3}}", "unknown key 'data.prompt.num_example'; did you mean 'num_examples'"),
        ("actor_rollout_ref: {rollout: {temprature: 1}}", "did you mean 'temperature'"),
    ],
)
def test_an_undeclared_key_in_a_file_is_refused_with_the_nearest(tmp_path, line, message):
    (tmp_path / "mine.yaml").write_text(f"defaults: [/base, /model: smollm2_135m, _self_]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        composed("mine", config_dir=tmp_path)


def test_open_mappings_take_any_key():
    config = composed("quickstart", "+actor_rollout_ref.rollout.engine_kwargs.vllm.anything=1")
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.anything == 1


def test_the_published_hyperparameters_reach_verl():
    config = composed("intra_generalisation/algorithmic_qwen_3b", "hardware=gpu")
    actor = config.actor_rollout_ref.actor
    assert (config.algorithm.adv_estimator, config.actor_rollout_ref.rollout.n, actor.optim.lr) == ("grpo", 8, 1e-6)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.001, "low_var_kl")
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, actor.entropy_coeff) == (32, 16, 0.001)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (512, 1024)


def test_a_broken_interpolation_is_a_config_error():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("quickstart", overrides=["trainer.experiment_name=test"])
        with open_dict(config):
            config.data.seed = "${no_such_key}"
        with pytest.raises(ConfigError, match="cannot be resolved"):
            checked_config(config)
