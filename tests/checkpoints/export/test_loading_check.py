"""Every export is loaded with a strict comparison of keys, and by vLLM with `check_vllm`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_files import tiny_model, write_plain

from rgtrain.checkpoints.export import export, loading_check
from rgtrain.checkpoints.export.loading_check import check_loading, vllm_verdict
from rgtrain.checkpoints.hugging_face import copy_model_files
from rgtrain.checkpoints.shards.layout import model_layout
from rgtrain.errors import ConfigError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a model, and return its folder and layout."""
    folder = tmp_path_factory.mktemp("exported")
    output = export(write_plain(folder / "global_step_1", tiny_model()), folder / "out")
    (folder / "copies").mkdir()
    return output, model_layout(copy_model_files(output, folder / "copies", trust=False), {}, max_parts=1000)


@pytest.fixture
def damaged(exported, tmp_path):
    """Return a function that changes the exported tensors and checks the result."""
    output, layout = exported
    tensors = load_file(output / "model.safetensors")
    (tmp_path / "config.json").write_text((output / "config.json").read_text())

    def check(**changes: torch.Tensor | None) -> None:
        changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        check_loading(tmp_path, layout)

    return check


def test_an_unchanged_export_is_loaded(exported):
    check_loading(*exported)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "because it lacks 'model.norm.weight'"),
        ({"model.more.weight": torch.zeros(2)}, "because it does not know 'model.more.weight'"),
        ({"model.norm.weight": torch.zeros(3)}, "because it has another shape of 'model.norm.weight'"),
    ],
)
def test_missing_unexpected_and_mismatched_tensors_are_refused(damaged, changes, message):
    with pytest.raises(ConfigError, match=message):
        damaged(**changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "can't load the exported tokenizer"),
        ("generation_config.json", json.dumps({"max_new_tokens": -1}), "can't load the exported generation_config"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_refused_and_leaves_no_output(name, content, message, tmp_path):
    actor = write_plain(tmp_path / "global_step_1", tiny_model())
    (actor / "huggingface" / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        export(actor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("print('noise'); print('vLLM 9: loaded as X')", "vLLM 9: loaded as X"),
        ("print('vLLM 9: not tried, because it does not know X')", "vLLM 9: not tried, because it does not know X"),
    ],
)
def test_the_verdict_of_vllm_is_its_line(program, verdict, tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(loading_check, "_VLLM_PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(loading_check.importlib.util, "find_spec", lambda name: object())
    assert vllm_verdict(tmp_path) == verdict


def test_a_model_that_vllm_refuses_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text("raise ValueError('weights were not initialized')")
    monkeypatch.setattr(loading_check, "_VLLM_PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(loading_check.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="vLLM can't load .*weights were not initialized"):
        vllm_verdict(tmp_path)


def test_without_vllm_the_check_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loading_check.importlib.util, "find_spec", lambda name: None)
    assert vllm_verdict(tmp_path) == "vLLM: not installed, so not tried"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_vllm_loads_an_exported_mixture_of_experts(family, tmp_path):
    from support.moe_models import tiny_model as moe_model

    said: list[str] = []
    actor = write_plain(tmp_path / "global_step_1", moe_model(family))
    export(actor, tmp_path / "out", check_vllm=True, say=said.append)
    assert ": loaded as " in said[-1]
