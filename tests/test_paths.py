"""Paths in configurations are relative to the project, not to the working folder."""

from pathlib import Path

import rgtrain.paths as paths
from rgtrain.paths import CONFIGS, PROJECT_ROOT, path_from_here, project_path


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


def test_a_command_lines_file_is_taken_from_here_first_and_then_from_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_from_here("evaluation/quick.yaml") == PROJECT_ROOT / "evaluation" / "quick.yaml"
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "quick.yaml").touch()
    assert path_from_here("evaluation/quick.yaml") == Path("evaluation/quick.yaml")
    assert path_from_here("evaluation/none.yaml") == Path("evaluation/none.yaml")


def test_a_wheels_file_is_found_unless_the_root_has_one_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SHIPPED", tmp_path / "carried")
    monkeypatch.setattr(paths, "PROJECT_ROOT", tmp_path)
    (tmp_path / "carried" / "evaluation").mkdir(parents=True)
    (tmp_path / "carried" / "evaluation" / "quick.yaml").touch()
    assert project_path("evaluation/quick.yaml") == tmp_path / "carried" / "evaluation" / "quick.yaml"
    assert project_path("evaluation/none.yaml") == tmp_path / "evaluation" / "none.yaml"
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "quick.yaml").touch()
    assert project_path("evaluation/quick.yaml") == tmp_path / "evaluation" / "quick.yaml"
