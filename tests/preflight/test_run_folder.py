"""A run's folder must be writable, hold undamaged checkpoints, and hold no run with other settings."""

import pytest
import yaml
from support.experiments import small_with_model
from support.preflights import check_plain

from rgtrain.checkpoints.checkpoint_store import CheckpointStore
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.preflight.run_folder import check_resume, check_run_dir, check_run_folder, check_same_run
from rgtrain.provenance import masked_values

SETTINGS = {"seed": 1, "data": {"train_size": 8}, "trainer": {"resume_mode": "auto"}}


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


def test_a_run_folder_that_cannot_be_written_is_refused(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to run_dir"):
        check_plain(small_with_model(tiny_model, tmp_path / "file" / "run"))


def test_a_run_folder_with_other_settings_is_refused(tiny_model, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(small_with_model(tiny_model, run_dir)))
    check_plain(small_with_model(tiny_model, run_dir, "trainer.total_training_steps=9"))
    with pytest.raises(ConfigError, match=r"holds a run with other settings: .*seed \(1 there, 2 now\)"):
        check_plain(small_with_model(tiny_model, run_dir, "seed=2"))


def test_a_run_with_a_changed_secret_is_the_same_run(tiny_model, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    configs = [small_with_model(tiny_model, run_dir) for _ in range(2)]
    for config, secret in zip(configs, ("SECRET1", "SECRET2"), strict=True):
        config["data"]["api_key"] = secret
    (run_dir / "config.yaml").write_text(yaml.safe_dump(masked_values(configs[0])))
    check_run_folder(RunConfig.of(configs[1]))


@pytest.mark.parametrize("content", [b"", b"seed: 1\ndata: {train", b"\0" * 50, b"\xff", b"seed", b"seed: 1\n", b"- 1"])
def test_a_damaged_configuration_in_the_run_folder_is_reported_with_the_fix(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config.yaml' is damaged .* delete the file and the run will resume"):
        check_same_run(SETTINGS, tmp_path)
    (tmp_path / "config.yaml").unlink()
    check_same_run(SETTINGS, tmp_path)


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
    check_resume(f"{tmp_path}/global_step_3/")
    (tmp_path / "global_step_3" / "data.pt").write_text("A sampler")
    with pytest.raises(ConfigError, match=r"global_step_3/ is damaged \(data.pt is damaged"):
        check_resume(f"{tmp_path}/global_step_3/")
