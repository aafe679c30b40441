"""Trackers name a run after its folder, and tag it with its seed and experiment."""

from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from support.experiments import small_run

from rgtrain.training.trackers import experiment_of, online_address, places_to_look, run_name, tag_environment


@pytest.fixture
def hydra(monkeypatch):
    """Return a function that makes Hydra's record of a command line with these words, of the experiment `given`."""

    def record(*words: str) -> None:
        config = OmegaConf.create({"job": {"config_name": "intra/given"}, "overrides": {"task": list(words)}})
        monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))

    return record


@pytest.mark.parametrize(
    ("folder", "name", "words", "expected"),
    [
        # Three seeds of one experiment are three names.
        ("runs/seed_2", "intra/given", (), "seed_2"),
        # The default folder has the experiment's name.
        ("runs/intra/given", "intra/given", (), "intra/given"),
        ("runs/seed_2", "mine", ("trainer.experiment_name=mine",), "mine"),
        ("runs/seed_2", "intra/given", ("++trainer.experiment_name=intra/given",), "intra/given"),
        # The name of a sweep's job, which the sweep gives.
        ("other/x", "intra/given/seed_1", ("trainer.experiment_name=intra/given/seed_1",), "intra/given/seed_1"),
        # Set in the experiment's file.
        ("runs/seed_2", "from_file", (), "from_file"),
        ("runs/" + "x" * 200, "intra/given", (), "x" * 128),
    ],
)
def test_a_run_is_named_after_its_folder_unless_a_name_is_given(tmp_path, hydra, folder, name, words, expected):
    hydra(*words)
    config = small_run(tmp_path / folder, f"trainer.experiment_name={name}")
    assert (run_name(config), experiment_of(config)) == (expected, "intra/given")


def test_without_hydra_a_run_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: False))
    config = small_run(tmp_path / "folder", "trainer.experiment_name=mine")
    assert (run_name(config), experiment_of(config)) == ("mine", "mine")


def test_a_run_is_tagged_with_its_seed_and_experiment_beside_the_users_tags():
    tags = tag_environment(seed=2, experiment="intra/given", environment={"WANDB_TAGS": "mine, seed_2,"})
    assert tags["WANDB_TAGS"] == "mine,seed_2,intra/given"
    assert tags["SWANLAB_TAGS"] == "seed_2,intra/given"
    assert tags["MLFLOW_RUN_CONTEXT"] == '{"seed": "2", "experiment": "intra/given"}'
    assert (
        tag_environment(seed=2, experiment="x", environment={"MLFLOW_RUN_CONTEXT": "{}"})["MLFLOW_RUN_CONTEXT"] == "{}"
    )


def test_wandb_accepts_the_tags_of_any_experiment():
    from wandb import Settings

    tags = tag_environment(seed=12345678901234567890, experiment="a,b" + "c" * 100, environment={})
    settings = Settings()
    settings.update_from_env_vars(tags)
    assert settings.run_tags == ("seed_12345678901234567890", "a_b" + "c" * 61)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, "wandb sync '{0}/a run/wandb'/offline-run-*"),
        ("offline", "wandb sync '{0}/a run/wandb'/offline-run-*"),
        ("online", "online; its address follows"),
        ("disabled", "disabled"),
    ],
)
def test_a_start_says_where_to_look(tmp_path, monkeypatch, mode, expected):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    run_dir = tmp_path / "a run"
    assert places_to_look(small_run(run_dir, "trainer.logger=[tensorboard,wandb]")) == [
        ("tensorboard", f"tensorboard --logdir '{run_dir}/tensorboard'"),
        ("wandb", expected.format(tmp_path)),
        ("report", f"python utils/report.py '{run_dir}'"),
    ]
    assert [name for name, _ in places_to_look(small_run(run_dir, "trainer.logger=[console]"))] == ["report"]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            SimpleNamespace(offline=False, url="https://wandb.ai/me/rgtrain/runs/1?apiKey=secret"),
            "https://wandb.ai/me/rgtrain/runs/1",
        ),
        (SimpleNamespace(offline=True, url=None), None),
        (SimpleNamespace(offline=False, url=None), None),
        (None, None),
    ],
)
def test_the_address_of_an_online_run_is_that_of_wandb_without_its_key(run, expected):
    assert online_address({"wandb": SimpleNamespace(run=run)}) == expected
    assert online_address({}) is None
