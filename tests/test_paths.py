"""Paths in configurations are relative to the project, not to the working folder."""

from pathlib import Path

from rgtrain.paths import CONFIGS, PROJECT_ROOT, project_path


def test_a_relative_path_starts_at_the_project_in_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_path("evaluation/quick.yaml") == PROJECT_ROOT / "evaluation" / "quick.yaml"
    assert project_path("evaluation/quick.yaml").is_file()


def test_an_absolute_path_is_unchanged(tmp_path):
    assert project_path(tmp_path) == tmp_path


def test_a_tilde_expands_to_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert project_path("~/models") == tmp_path / "models"


def test_the_project_contains_its_configurations_and_entry_points():
    assert CONFIGS.is_dir()
    assert Path(PROJECT_ROOT, "train_grpo.py").is_file()
