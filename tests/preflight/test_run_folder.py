"""A run's folder must be writable, hold undamaged checkpoints, and hold no run with other settings."""

import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from support.experiments import small_experiment, small_with_model
from support.preflights import check_plain

from rgtrain.checkpoints.checkpoint_store import CheckpointStore
from rgtrain.checkpoints.supervised_run import SFT_CONFIG
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.preflight.run_folder import (
    changed_settings,
    check_resume,
    check_run_dir,
    check_run_folder,
    check_same_run,
    check_save_failure,
    check_saved_ranks,
)
from rgtrain.provenance import masked_values

CONTENTS = {"actor": ["model", "optimizer", "extra"]}
SETTINGS = {
    "seed": 1,
    "run_dir": "run",
    "data": {"train_size": 8},
    "algorithm": {},
    "actor_rollout_ref": {},
    "trainer": {"resume_mode": "auto"},
}


def save_a_start(run_dir: Path, config: dict[str, Any], *, with_checkpoint: bool = True) -> None:
    """Write the files of an earlier start with this plain configuration."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(masked_values(config)))
    if with_checkpoint:
        (run_dir / "checkpoints" / "global_step_1").mkdir(parents=True)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("somewhere", "give a folder named global_step_N"),
        ("global_step_3", "not a complete checkpoint, because actor is missing"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(tiny_model, tmp_path, folder, message):
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path / folder}"]
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *resume))


@pytest.mark.parametrize("machines", ["trainer.n_gpus_per_node=2", "trainer.nnodes=2"])
def test_several_ranks_cannot_go_on_after_a_failed_save(tiny_model, tmp_path, machines):
    words = ["trainer.save_failure=continue", machines]
    message = "save_failure=continue needs a single worker, but .*; set trainer.save_failure=stop"
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path, *words))
    check_save_failure(RunConfig.of(small_with_model(tiny_model, tmp_path, words[0])))
    check_save_failure(RunConfig.of(small_with_model(tiny_model, tmp_path, machines)))
    check_save_failure(RunConfig.of(small_with_model(tiny_model, tmp_path, *words, "trainer.save_freq=-1")))


def test_a_run_folder_that_cannot_be_written_is_refused(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to run_dir"):
        check_plain(small_with_model(tiny_model, tmp_path / "file" / "run"))


def test_a_run_folder_with_other_settings_is_refused(tiny_model, tmp_path):
    run_dir = tmp_path / "run"
    save_a_start(run_dir, small_with_model(tiny_model, run_dir))
    check_plain(small_with_model(tiny_model, run_dir, "trainer.total_training_steps=9"))
    with pytest.raises(ConfigError, match=r"holds a run with other settings: .*seed \(1 there, 2 now\)"):
        check_plain(small_with_model(tiny_model, run_dir, "seed=2"))


def test_the_folder_of_a_supervised_run_is_refused(tiny_model, tmp_path):
    (tmp_path / SFT_CONFIG).touch()
    with pytest.raises(ConfigError, match=r"holds a run of train_sft\.py; set run_dir=ANOTHER"):
        check_run_folder(RunConfig.of(small_with_model(tiny_model, tmp_path)))


@pytest.fixture
def plain(tmp_path) -> dict[str, Any]:
    return plain_config(small_experiment(tmp_path / "run"))


def test_settings_bind_from_the_first_checkpoint_on(tmp_path, plain):
    run_dir = tmp_path / "run"
    save_a_start(run_dir, plain, with_checkpoint=False)
    changed = {**plain, "seed": 2}
    check_same_run(changed, run_dir)
    (run_dir / "checkpoints" / "global_step_5").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"seed \(1 there, 2 now\)"):
        check_same_run(changed, run_dir)
    # Checkpoints that the new start would not look at bind too.
    elsewhere = {**changed, "trainer": {**plain["trainer"], "default_local_dir": str(tmp_path / "elsewhere")}}
    with pytest.raises(ConfigError, match="other settings"):
        check_same_run(elsewhere, run_dir)


def test_an_edited_file_of_the_prompt_is_refused(tmp_path, plain):
    """A configuration holds the content of the file."""
    text = "Think about it first. Then write the answer between <answer> and </answer>."
    before, now = (
        {**plain, "data": {**plain["data"], "prompt": {**plain["data"]["prompt"], "system_prompt": prompt}}}
        for prompt in (text, f"{text} Go!")
    )
    save_a_start(tmp_path / "run", before)
    check_same_run(before, tmp_path / "run")
    message = r"system_prompt \('Think about it .*'\.\.\. of 75 characters there, .* of 79 characters now\)"
    with pytest.raises(ConfigError, match=message):
        check_same_run(now, tmp_path / "run")


def without(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a copy of a plain configuration without these full keys."""
    copied = OmegaConf.create(tree)
    for key in keys:
        parent, _, name = key.rpartition(".")
        del (OmegaConf.select(copied, parent) if parent else copied)[name]
    return OmegaConf.to_container(copied)


def test_a_key_that_is_newer_than_the_run_counts_as_its_default(tmp_path, plain):
    new = ("engine", "hardware", "data.prompt.examples", "actor_rollout_ref.actor.ppo_epochs", "reward.scorer")
    save_a_start(tmp_path / "run", without(plain, *new))
    assert changed_settings(plain, tmp_path / "run") == []
    check_same_run(plain, tmp_path / "run")
    changed = {**plain, "data": {**plain["data"], "prompt": {**plain["data"]["prompt"], "role": "developer"}}}
    assert changed_settings(changed, tmp_path / "run") == [("data.prompt.role", "system", "developer")]
    # A default that refers to another value is that of the earlier run.
    save_a_start(tmp_path / "other", {**without(plain, "data.seed"), "seed": 7}, with_checkpoint=False)
    assert changed_settings({**plain, "seed": 7}, tmp_path / "other") == [("data.seed", 7, 1)]


def test_a_key_that_no_longer_exists_does_not_count(tmp_path, plain):
    save_a_start(tmp_path / "run", {**plain, "abolished": 1, "data": {**plain["data"], "former": {"key": 2}}})
    check_same_run(plain, tmp_path / "run")


def test_a_removed_dataset_counts(tmp_path, plain):
    mixture = {**plain["data"]["mixture"], "gcd": {"weight": 1}}
    save_a_start(tmp_path / "run", {**plain, "data": {**plain["data"], "mixture": mixture}})
    with pytest.raises(ConfigError, match=r"data.mixture.gcd.weight \(1 there, None now\)"):
        check_same_run(plain, tmp_path / "run")


def test_a_run_resumes_with_settings_for_another_number_of_gpus(tmp_path, plain):
    save_a_start(tmp_path / "run", plain)
    changes = {
        "hardware.gpu_memory_gb": 24,
        "trainer.n_gpus_per_node": 4,
        "actor_rollout_ref.rollout.gpu_memory_utilization": 0.3,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 1234,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 2,
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        "actor_rollout_ref.rollout.free_cache_engine": True,
        "actor_rollout_ref.rollout.enable_sleep_mode": True,
        "actor_rollout_ref.actor.fsdp_config.offload_policy": True,
        "actor_rollout_ref.actor.fsdp_config.fsdp_size": 8,
        "actor_rollout_ref.ref.fsdp_config.fsdp_size": 8,
    }
    changed = OmegaConf.create(plain)
    for key, value in changes.items():
        OmegaConf.update(changed, key, value)
    check_same_run(OmegaConf.to_container(changed), tmp_path / "run")


def test_a_run_with_a_changed_secret_is_the_same_run(tmp_path, plain):
    configs = [{**plain, "data": {**plain["data"], "api_key": secret}} for secret in ("SECRET1", "SECRET2")]
    save_a_start(tmp_path / "run", configs[0])
    check_run_folder(RunConfig.of(configs[1]))


@pytest.mark.parametrize("content", [b"", b"seed: 1\ndata: {train", b"\0" * 50, b"\xff", b"seed", b"seed: 1\n", b"- 1"])
def test_a_damaged_configuration_of_a_run_with_checkpoints_is_reported_with_the_fix(tmp_path, content):
    settings = {**SETTINGS, "trainer": {"default_local_dir": str(tmp_path / "checkpoints")}}
    (tmp_path / "config.yaml").write_bytes(content)
    check_same_run(settings, tmp_path)
    (tmp_path / "checkpoints" / "global_step_1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config.yaml' is damaged .* delete the file and the run will resume"):
        check_same_run(settings, tmp_path)
    (tmp_path / "config.yaml").unlink()
    check_same_run(settings, tmp_path)


def test_a_preflight_for_other_hardware_does_not_write_to_the_folders_of_the_run(tmp_path, plain):
    (tmp_path / "file").write_text("")
    config = {**plain, "run_dir": str(tmp_path / "file" / "run"), "preflight": "only"}
    with pytest.raises(ConfigError, match="cannot write to run_dir"):
        check_run_folder(RunConfig.of(config))
    config["trainer"] = {**plain["trainer"], "device": "cuda", "n_gpus_per_node": 8}
    check_run_folder(RunConfig.of(config))


def test_a_folder_linked_to_a_missing_disk_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "other disk")
    with pytest.raises(ConfigError, match=r"trainer.default_local_dir=.* is a link to .* which does not exist"):
        check_run_dir(tmp_path / "run" / "checkpoints", key="trainer.default_local_dir")


def test_a_damaged_checkpoint_to_resume_from_is_refused(tmp_path):
    store = CheckpointStore(tmp_path, keep=None, say=print)
    with store.saving(3) as staging:
        (staging / "global_step_3" / "actor").mkdir(parents=True)
        (staging / "global_step_3" / "data.pt").write_text("a sampler")
    check_resume(f"{tmp_path}/global_step_3/", contents=CONTENTS)
    (tmp_path / "global_step_3" / "data.pt").write_text("A sampler")
    with pytest.raises(ConfigError, match=r"global_step_3/ is damaged \(data.pt is damaged"):
        check_resume(f"{tmp_path}/global_step_3/", contents=CONTENTS)


@pytest.mark.parametrize(
    ("missing", "contents", "message"),
    [
        ("model_world_size_2_rank_1.pt", ["model"], r"lacks 1 of 2 rank files: model_world_size_2_rank_1\.pt"),
        ("optim_world_size_2_rank_1.pt", ["model", "optimizer"], r"no complete optim_world_size_2_rank_1\.pt"),
        ("extra_state_world_size_2_rank_0.pt", ["model", "extra"], r"no complete extra_state_world_size_2_rank_0\.pt"),
        ("optim_world_size_2_rank_1.pt", ["model", "extra"], None),
    ],
)
def test_a_checkpoint_without_the_files_of_all_ranks_is_refused(tmp_path, missing, contents, message):
    actor = save_ranks(tmp_path / "global_step_3")
    (actor / missing).unlink()
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_resume(f"{tmp_path}/global_step_3", contents={"actor": contents})


@pytest.mark.parametrize(("version", "num_gpus", "is_refused"), [(2, 1, False), (1, 2, False), (1, 4, True)])
def test_a_checkpoint_of_fsdp1_is_refused_on_another_number_of_gpus(tmp_path, version, num_gpus, is_refused):
    save_ranks(tmp_path / "global_step_3", fsdp_version=version)
    message = r"actor' was saved on 2 GPUs by strategy=fsdp, which can't resume on 4; use 2 GPUs"
    with pytest.raises(ConfigError, match=message) if is_refused else nullcontext():
        check_saved_ranks(tmp_path / "global_step_3", num_gpus=num_gpus)
    check_saved_ranks(tmp_path / "global_step_None", num_gpus=num_gpus)
    # A damaged checkpoint is set aside later.
    (tmp_path / "global_step_3" / "actor" / "fsdp_config.json").write_text("{")
    check_saved_ranks(tmp_path / "global_step_3", num_gpus=num_gpus)


def save_ranks(folder: Path, *, fsdp_version: int = 2) -> Path:
    """Write the files of two ranks, all without content, and return their folder."""
    actor = folder / "actor"
    actor.mkdir(parents=True)
    (folder / "data.pt").write_text("a sampler")
    (actor / "fsdp_config.json").write_text(f'{{"FSDP_version": {fsdp_version}, "world_size": 2}}')
    for kind in ("model", "optim", "extra_state"):
        for rank in range(2):
            with zipfile.ZipFile(actor / f"{kind}_world_size_2_rank_{rank}.pt", "w") as file:
                file.writestr("data.pkl", "")
    return actor
