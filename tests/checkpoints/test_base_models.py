"""The model from which a model was trained."""

import json

import pytest

from rgtrain.checkpoints.base_models import is_same_model, read_base_model


def write_run_config(run, path):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(json.dumps({"actor_rollout_ref": {"model": {"path": path}}}))


def test_a_model_in_a_run_comes_from_the_initial_model(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_run_config(tmp_path / "run", str(base))
    for place in ("hf", "checkpoints/global_step_2/actor"):
        folder = tmp_path / "run" / place
        folder.mkdir(parents=True)
        assert read_base_model(folder) == str(base)
        assert is_same_model(read_base_model(folder), f"{tmp_path}/run/../base")


def test_an_adapter_names_its_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert read_base_model(tmp_path) == "org/base"


@pytest.mark.parametrize(
    "content", ["[", "[]", "actor_rollout_ref: 1", "a: &a [*a]", "actor_rollout_ref: {model: {path: [1]}}"]
)
def test_an_unknown_base_model_is_none(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert read_base_model(tmp_path) is None


def test_a_model_that_is_not_on_this_machine_or_was_not_trained_has_no_base_model(tmp_path, monkeypatch):
    write_run_config(tmp_path, "org/base")
    monkeypatch.chdir(tmp_path)
    assert read_base_model(tmp_path / "missing") is None
    model = tmp_path / "model"
    model.mkdir()
    write_run_config(tmp_path, str(model))
    assert read_base_model(model) is None
