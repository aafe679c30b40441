"""Checkpoints are compared with the free space of the disk, if the run is for this machine."""

from support.experiments import plain_project_experiment
from support.preflights import preflight_only

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight import disk
from rgtrain.preflight.disk import disk_need
from rgtrain.preflight.sizes import ModelSize

MANY = ("trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=null", "trainer.total_training_steps=2000")


def test_checkpoints_that_do_not_fit_on_the_disk_are_an_error(tmp_path, tiny_model, monkeypatch, quick):
    usage = disk.shutil.disk_usage("/")._replace(free=10**10)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    words = ["hardware=cpu", f"actor_rollout_ref.model.path={tiny_model}", *MANY]
    code, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", *words))
    assert code == 2
    assert "GB of checkpoints will not fit into 10 GB of free space; set trainer.default_local_dir or run_dir" in text


def test_the_disk_of_this_machine_does_not_count_for_another(tmp_path, monkeypatch):
    config = RunConfig.of(plain_project_experiment("quickstart", tmp_path / "run", "hardware=8x80gb", *MANY))
    need = disk_need(config, ModelSize.of(SHAPES["qwen2.5-7b"]), TrainingSettings.of(config), num_steps=2000)
    assert need.free is None
    assert need.fits
    assert need.total > 10**14


def test_the_disk_of_the_checkpoints_counts(tmp_path, monkeypatch):
    asked = []
    usage = disk.shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    (tmp_path / "other").mkdir()
    words = ["hardware=cpu", f"trainer.default_local_dir={tmp_path}/other/checkpoints"]
    config = RunConfig.of(plain_project_experiment("quickstart", tmp_path / "run", *words))
    disk_need(config, ModelSize.of(SHAPES["qwen2.5-0.5b"]), TrainingSettings.of(config), num_steps=2)
    assert asked == [tmp_path / "other"]
