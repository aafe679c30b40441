"""Every experiment composes on any hardware and from any folder, and undeclared keys are refused."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from support.experiments import composed, project_experiment

from rgtrain.config import catalogue, composition
from rgtrain.config.composition import checked_config, detected_hardware, register_plugins
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.config.verl_keys import refused_settings
from rgtrain.errors import ConfigError
from rgtrain.paths import CONFIGS, PROJECT_ROOT
from rgtrain.preflight.plan import plan_of

register_plugins()

EXPERIMENTS = catalogue.experiments()
NAMES = [catalogue.name_of(path) for path in EXPERIMENTS]
HARDWARE, ALGORITHMS = (
    [catalogue.name_of(path) for path in catalogue.choices(group)] for group in ("hardware", "algorithm")
)
# Every pair of hardware and algorithm occurs, each with the next experiment. With --slow, all triples are composed.
PAIRS = [(hardware, algorithm) for hardware in HARDWARE for algorithm in ALGORITHMS]
TRIPLES = [(NAMES[i % len(NAMES)], *pair) for i, pair in enumerate(PAIRS)]


@pytest.mark.parametrize(("name", "hardware", "algorithm"), TRIPLES)
def test_every_experiment_composes_on_hardware_with_every_algorithm(name, hardware, algorithm):
    config = project_experiment(name, f"hardware={hardware}", f"algorithm={algorithm}")
    assert config.trainer.device == ("cpu" if hardware == "cpu" else "cuda")
    assert config.data.mixture
    assert config.data.hold_out_shipped
    assert not OmegaConf.missing_keys(config.data)
    assert list(refused_settings(plain_config(config))) == []


def test_the_triples_cover_every_choice_on_several_hardware():
    assert {(hardware, algorithm) for _, hardware, algorithm in TRIPLES} == set(PAIRS)
    for name in NAMES:
        assert len({hardware for one, hardware, _ in TRIPLES if one == name}) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("name", NAMES)
def test_every_triple_composes(name, hardware):
    for algorithm in ALGORITHMS:
        project_experiment(name, f"hardware={hardware}", f"algorithm={algorithm}")


def test_lora_combines_with_any_model():
    config = project_experiment("llama3.1_1b_grpo", "model=[qwen3_4b,lora]")
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen3-4B"
    assert config.actor_rollout_ref.model.lora_rank > 0


@pytest.mark.parametrize("debug", ["smoke", "overfit", "profile"])
def test_debug_choices_override_the_experiment(debug):
    config = project_experiment("inter_generalisation/games_qwen_3b", f"debug={debug}", "hardware=cpu")
    plan = plan_of(RunConfig.of(plain_config(config)))
    assert plan.num_steps == {"smoke": 2, "overfit": 100, "profile": 500}[debug]
    assert config.data.max_response_length == (16 if debug == "smoke" else 2048)


def test_a_profile_is_kept_in_the_runs_folder():
    config = project_experiment("quickstart", "debug=profile", "run_dir=runs/a")
    assert config.global_profiler.save_path == "runs/a/profile"
    assert config.actor_rollout_ref.actor.profiler.enable


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_an_experiment_composes_equally_from_its_own_folder(path):
    from_root = project_experiment(str(path.relative_to(CONFIGS).with_suffix("")))
    assert composed(name=path.stem, config_dir=path.parent) == from_root


def test_an_experiment_outside_the_project_finds_its_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [/base, /model: smollm2_135m, _self_]\nseed: 7\n")
    assert composed(name="mine", config_dir=tmp_path).data.seed == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sed: 3", "unknown key 'sed'; did you mean 'seed'"),
        ("data: {train_batchsize: 3}", "unknown key 'data.train_batchsize'; did you mean 'train_batch_size'"),
        ("data: {prompt: {num_example: 3}}", "unknown key 'data.prompt.num_example'; did you mean 'num_examples'"),
        ("actor_rollout_ref: {rollout: {temprature: 1}}", "did you mean 'temperature'"),
    ],
)
def test_an_undeclared_key_in_a_file_is_refused_with_a_suggestion(tmp_path, line, message):
    (tmp_path / "mine.yaml").write_text(f"defaults: [/base, /model: smollm2_135m, _self_]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        composed(name="mine", config_dir=tmp_path)


def test_open_mappings_accept_any_key():
    config = project_experiment("quickstart", "+actor_rollout_ref.rollout.engine_kwargs.vllm.anything=1")
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.anything == 1


def test_a_broken_interpolation_is_a_config_error():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("quickstart", overrides=["trainer.experiment_name=test"])
        with open_dict(config):
            config.data.seed = "${no_such_key}"
        with pytest.raises(ConfigError, match="cannot be resolved"):
            checked_config(config)


def test_an_unknown_choice_of_a_group_is_refused_with_a_list_of_the_choices(tmp_path):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "hardware=3x80gb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hardware has no choice '3x80gb'; did you mean ")
    assert f"(choose from: {', '.join(sorted(HARDWARE))})" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_gpus", "hardware"), [(0, "cpu"), (1, "gpu"), (3, "gpu")])
def test_hardware_is_detected_by_the_presence_of_gpus(monkeypatch, num_gpus, hardware):
    monkeypatch.setattr(composition, "num_gpus", lambda: num_gpus)
    assert detected_hardware() == hardware
