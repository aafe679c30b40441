"""A start that saved no checkpoint does not pin its folder: its files are set aside by a start with other settings."""

import json

import yaml
from support.experiments import small_experiment

from rgtrain.checkpoints.metrics_file import METRICS
from rgtrain.config.run_config import plain_config
from rgtrain.training.abandoned_start import set_aside_abandoned_start


def test_metrics_of_other_settings_are_kept_apart(tmp_path):
    config = plain_config(small_experiment(tmp_path))
    assert set_aside_abandoned_start(config, tmp_path) is None
    for number in (1, 2):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 10 + number}))
        (tmp_path / METRICS).write_text(json.dumps({"step": 1}) + "\n")
        (tmp_path / "wandb_run_id").write_text("abc")
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "train.log").touch()
        line = set_aside_abandoned_start(config, tmp_path)
        assert line == (
            "moved the files of an earlier start with other settings (seed), which saved no checkpoint, to "
            f"{tmp_path}/abandoned_{number}"
        )
        moved = {path.name for path in (tmp_path / f"abandoned_{number}").iterdir()}
        assert moved == {"config.yaml", METRICS, "wandb_run_id", "tensorboard"}


def test_a_start_with_the_same_settings_continues(tmp_path):
    config = plain_config(small_experiment(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / METRICS).write_text("")
    assert set_aside_abandoned_start(config, tmp_path) is None
    assert (tmp_path / METRICS).exists()


def test_a_damaged_configuration_without_checkpoints_stops_nothing(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\0")
    assert "config.yaml, which is damaged" in set_aside_abandoned_start(
        plain_config(small_experiment(tmp_path)), tmp_path
    )
