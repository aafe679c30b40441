"""A run and its workers get one environment, one W&B run, and an object store that fits the shared memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from support.experiments import small_experiment, small_with_model

from rgtrain.checkpoints.checkpoint_store import LAST, CheckpointStore
from rgtrain.checkpoints.metrics_file import METRICS, STEP_METRICS
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.machine.orphan_cleanup import RUN_ID
from rgtrain.training import launch
from rgtrain.training.launch import (
    _object_store,
    _set_environment,
    _validates_trained_run,
    _wandb_environment,
    train,
)
from rgtrain.training.lifecycle.console import MARK_VARIABLE, mark

GIB = 1 << 30
USER_VARIABLES = (
    "RAY_worker_niceness",
    "RAY_prestart_worker_first_driver",
    "REPORTER_UPDATE_INTERVAL_MS",
    "VERL_PLATFORM",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "WANDB_MODE",
    "WANDB_API_KEY",
    "WANDB_RUN_ID",
    "NETRC",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_BATCH_INVARIANT",
)


@pytest.fixture(autouse=True)
def home(tmp_path) -> Iterator[Path]:
    """Yield an empty home folder of a user who has set no variables, and restore the environment afterwards."""
    before = dict(os.environ)
    for name in USER_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= {RUN_ID: "launched", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    os.environ.clear()
    os.environ.update(before)


def launched(run_dir: Path, *changes: str) -> DictConfig:
    config = small_experiment(run_dir, *changes)
    _set_environment(config, RunConfig.of(plain_config(config)))
    return config


def workers_environment(config: DictConfig) -> dict[str, str]:
    return OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env.env_vars)


def test_a_validation_of_a_checkpoint_keeps_the_configuration_of_its_training(tmp_path):
    config, validation = (
        RunConfig.of(plain_config(small_experiment(tmp_path, *words))) for words in ([], ["trainer.val_only=true"])
    )
    (tmp_path / "config.yaml").touch()
    # A validation of the base model has its own configuration.
    assert not _validates_trained_run(validation)
    validation.trainer.default_local_dir.mkdir()
    (validation.trainer.default_local_dir / LAST).write_text("6")
    assert _validates_trained_run(validation) and not _validates_trained_run(config)
    for mode in ("resume_path", "disable"):
        words = ["trainer.val_only=true", f"trainer.resume_mode={mode}"]
        assert _validates_trained_run(RunConfig.of(plain_config(small_experiment(tmp_path, *words)))), mode


def test_the_trainer_and_its_workers_share_one_environment(tmp_path):
    shared = workers_environment(launched(tmp_path))
    assert {"PYTHONHASHSEED": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", RUN_ID: "launched"}.items() <= shared.items()
    assert shared.items() <= os.environ.items()


def test_the_processes_of_verl_get_the_variables_that_its_own_launcher_sets(tmp_path):
    from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV

    other_hardware = {"HCCL_HOST_SOCKET_PORT_RANGE", "HCCL_NPU_SOCKET_PORT_RANGE", "HSA_NO_SCRATCH_RECLAIM"}
    changes = ("engine=verl", "trainer.logger=[rl_insight]", "actor_rollout_ref.rollout.full_determinism=true")
    shared = workers_environment(launched(tmp_path, *changes))
    assert set(PPO_RAY_RUNTIME_ENV["env_vars"]) - other_hardware <= set(shared)
    assert {"VERL_FULL_DETERMINISM": "1", "VERL_RL_INSIGHT_ENABLE": "1"}.items() <= shared.items()
    # verl runs vLLM in separate processes.
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in shared


def test_a_worker_gets_the_variables_that_the_user_configures(tmp_path):
    variables = "ray_kwargs.ray_init.runtime_env.env_vars"
    shared = workers_environment(launched(tmp_path, f"{variables}.NCCL_DEBUG=INFO", f"{variables}.OWN=value"))
    assert (shared["NCCL_DEBUG"], shared["OWN"]) == ("INFO", "value")
    assert os.environ["NCCL_DEBUG"] == "WARN"


def test_a_worker_responds_to_the_watchdog_unless_the_user_configures_another_hook(tmp_path):
    hook = launched(tmp_path).ray_kwargs.ray_init.runtime_env.worker_process_setup_hook
    module, _, name = hook.rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    own = "ray_kwargs.ray_init.runtime_env.worker_process_setup_hook=own.hook"
    assert launched(tmp_path, own).ray_kwargs.ray_init.runtime_env.worker_process_setup_hook == "own.hook"


def test_secrets_of_a_run_are_in_its_environment_but_not_in_its_configuration(tmp_path):
    config = launched(tmp_path)
    text = OmegaConf.to_yaml(config)
    for name in (MARK_VARIABLE, "RAY_AUTH_TOKEN"):
        assert len(os.environ[name]) > 32
        assert os.environ[name].strip() not in text


def test_each_run_has_a_different_mark(tmp_path):
    launched(tmp_path)
    first = mark()
    launched(tmp_path)
    assert mark() != first


@pytest.mark.parametrize(
    ("mode", "address", "has_token"),
    [(None, "null", True), ("token", "null", True), ("disabled", "null", False), (None, "10.0.0.1:6379", False)],
)
def test_a_ray_cluster_that_the_run_starts_is_protected_by_its_token(tmp_path, mode, address, has_token):
    if mode:
        os.environ["RAY_AUTH_MODE"] = mode
    launched(tmp_path, f"ray_kwargs.ray_init.address={address}")
    assert ("RAY_AUTH_TOKEN" in os.environ) is has_token


# Workers have the trainer's niceness, and Ray starts no idle ones.
@pytest.mark.parametrize("setting", ["RAY_worker_niceness", "RAY_prestart_worker_first_driver"])
def test_settings_of_rays_workers_are_those_of_the_user_or_ours(setting, tmp_path):
    assert workers_environment(launched(tmp_path))[setting] == "0"
    os.environ |= {setting: "5"}
    assert workers_environment(launched(tmp_path))[setting] == "5"


def test_rays_agent_measures_once_unless_there_is_a_dashboard_or_the_user_sets_the_interval(tmp_path):
    name = "REPORTER_UPDATE_INTERVAL_MS"
    launched(tmp_path, "ray_kwargs.ray_init.include_dashboard=true")
    assert name not in os.environ
    launched(tmp_path)
    # The name is internal to Ray, so that Ray has to confirm it.
    command = f"from ray.dashboard.modules.reporter.reporter_consts import {name}; print({name})"
    read = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert read.strip() == os.environ[name] == "86400000"
    os.environ[name] = "2500"
    assert workers_environment(launched(tmp_path))[name] == "2500"


def test_a_run_on_a_cpu_removes_an_empty_list_of_gpus(tmp_path):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    assert workers_environment(launched(tmp_path))["VERL_PLATFORM"] == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_run_on_gpus_keeps_the_users_choice_of_gpus_and_has_no_cpu_platform(tmp_path):
    os.environ["CUDA_VISIBLE_DEVICES"] = "1"
    shared = workers_environment(launched(tmp_path, "trainer.device=cuda"))
    assert (shared["VERL_PLATFORM"], shared["PYTORCH_NVML_BASED_CUDA_CHECK"]) == ("nvidia", "1")
    os.environ["VERL_PLATFORM"] = "amd"
    assert workers_environment(launched(tmp_path, "trainer.device=cuda"))["VERL_PLATFORM"] == "amd"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("device", "is_deterministic", "expected"), [("cuda", "true", "1"), ("cuda", "false", None), ("cpu", "true", None)]
)
def test_a_deterministic_run_on_gpus_uses_batch_invariant_kernels(tmp_path, device, is_deterministic, expected):
    changes = (f"trainer.device={device}", f"actor_rollout_ref.rollout.full_determinism={is_deterministic}")
    assert workers_environment(launched(tmp_path, *changes)).get("VLLM_BATCH_INVARIANT") == expected


def test_the_attention_backend_for_older_processors_reaches_vllm_unless_one_is_configured(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "attention_backend", lambda: "FLASH_ATTN")
    assert launched(tmp_path).actor_rollout_ref.rollout.engine_kwargs.vllm.attention_backend == "FLASH_ATTN"
    own = "actor_rollout_ref.rollout.engine_kwargs.vllm.attention_backend=FLASHINFER"
    assert launched(tmp_path, own).actor_rollout_ref.rollout.engine_kwargs.vllm.attention_backend == "FLASHINFER"


def test_only_a_run_that_logs_to_wandb_gets_a_wandb_run(tmp_path):
    assert "WANDB_RUN_ID" not in workers_environment(launched(tmp_path, "trainer.logger=[tensorboard]"))
    assert not (tmp_path / "wandb_run_id").exists()
    shared = workers_environment(launched(tmp_path, "trainer.logger=[tensorboard,wandb]"))
    assert shared["WANDB_RUN_ID"] == (tmp_path / "wandb_run_id").read_text()


def test_every_start_in_a_folder_continues_one_wandb_run(tmp_path):
    first = _wandb_environment(tmp_path)
    assert _wandb_environment(tmp_path) == first
    assert first["WANDB_RESUME"] == "allow"


def test_runs_in_two_folders_are_two_wandb_runs(tmp_path, home):
    assert _wandb_environment(tmp_path)["WANDB_RUN_ID"] != _wandb_environment(home)["WANDB_RUN_ID"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"two words", b"x" * 65, b"line\n"])
def test_a_damaged_wandb_run_id_is_replaced(tmp_path, damage):
    (tmp_path / "wandb_run_id").write_bytes(damage)
    run_id = _wandb_environment(tmp_path)["WANDB_RUN_ID"]
    assert run_id.isalnum() and (tmp_path / "wandb_run_id").read_text() == run_id


def test_without_a_login_wandb_records_offline(tmp_path):
    assert _wandb_environment(tmp_path)["WANDB_MODE"] == "offline"


def test_a_login_to_another_service_does_not_count_as_a_login_to_wandb(tmp_path, home):
    (home / ".netrc").write_text("machine example.org login me password secret\n")
    assert _wandb_environment(tmp_path)["WANDB_MODE"] == "offline"


@pytest.mark.parametrize("login", ["WANDB_API_KEY", "WANDB_MODE", ".netrc", "NETRC"])
def test_with_a_login_or_a_mode_set_by_the_user_wandb_chooses_its_mode(tmp_path, home, login):
    netrc = "machine api.wandb.ai login user password secret\n"
    if login == ".netrc":
        (home / ".netrc").write_text(netrc)
    elif login == "NETRC":
        (home / "elsewhere").write_text(netrc)
        os.environ["NETRC"] = "~/elsewhere"
    else:
        os.environ[login] = "online"
    assert "WANDB_MODE" not in _wandb_environment(tmp_path)


@pytest.mark.parametrize(
    ("free", "memory", "expected"),
    [
        # Ray's default, 30% of the memory, fits.
        (64 * GIB, 100 * GIB, {}),
        (8 * GIB, 100 * GIB, {"object_store_memory": int(0.9 * 8 * GIB)}),
        # Files are better than so small a store.
        (GIB // 2, 100 * GIB, {}),
    ],
)
def test_rays_object_store_fits_a_small_shared_memory(monkeypatch, free, memory, expected):
    usage = launch.shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(launch, "memory_bytes", lambda: memory)
    assert _object_store() == expected


def test_a_finished_run_is_reported_and_not_started(tmp_path, tiny_model, capsys):
    words = ["trainer.total_training_steps=3", "trainer.total_epochs=1"]
    config = OmegaConf.create(small_with_model(tiny_model, tmp_path / "run", *words))
    run_dir, store = tmp_path / "run", CheckpointStore(tmp_path / "run" / "checkpoints", keep=None, say=print)
    with store.saving(3) as staging:
        (staging / "global_step_3").mkdir()
        torch.save({}, staging / "global_step_3" / "data.pt")
        (staging / "global_step_3" / STEP_METRICS).write_text('{"step": 3}\n')
    (run_dir / METRICS).write_text(json.dumps({"step": 3}) + "\n")
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config))
    before = {path.name for path in run_dir.iterdir()}
    train(config)
    assert capsys.readouterr().out.endswith("has finished its 3 steps; set run_dir for another run\n")
    assert {path.name for path in run_dir.iterdir()} - before <= {".lock"}
