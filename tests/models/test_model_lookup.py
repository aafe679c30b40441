"""A model is found on this machine, in the hub's cache or on the hub, or refused with the reason within seconds."""

import json
import socket
import time
from pathlib import Path

import pytest
from support.experiments import small_run
from support.hub import go_online, local_hub

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_model import opened_model
from rgtrain.models.model_lookup import (
    ask_hub,
    cached_snapshot,
    cached_template,
    fetch_model,
    fetch_template,
    is_hub_name,
    missing_parts,
)
from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight.training_model import check_model_is_available, find_model

SHAPE = dict(SHAPES["qwen2.5-0.5b"])
MODELS = {
    "org/model": {"config.json": json.dumps(SHAPE).encode()},
    "org/templated": {
        "config.json": json.dumps(SHAPE).encode(),
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": b"",
    },
    "org/gated": "gated",
    "org/adapter": {"adapter_config.json": b"{}"},
    "org/weights-only": {"model.gguf": b""},
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub(monkeypatch, tmp_path / "hub", MODELS) as asked:
        yield asked
    ask_hub.cache_clear()


def write_snapshot(cache: Path, name: str, files: dict[str, bytes], *, revision: str = "a" * 40) -> Path:
    """Write files into the hub's cache as a download does."""
    model = cache / f"models--{name.replace('/', '--')}"
    folder = model / "snapshots" / revision
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(revision)
    return folder


COMPLETE = {"config.json": json.dumps(SHAPE).encode(), "tokenizer.json": b"", "tokenizer_config.json": b"{}"}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Qwen/Qwen2.5-3B", True),
        ("configs/Typo", False),
        ("./a", False),
        ("a/b/c", False),
        ("gpt2", False),
        ("/a/b", False),
    ],
)
def test_a_hub_name_has_two_parts_and_starts_with_no_folder(given, expected):
    assert is_hub_name(given) is expected


def run_with(path: str, tmp_path: Path):
    return small_run(tmp_path / "run", f"actor_rollout_ref.model.path={path}", "model.shape=null")


def test_the_shape_of_an_unknown_model_comes_from_the_hub(hub, tmp_path):
    config = run_with("org/model", tmp_path)
    assert check_model_is_available(config, is_for_here=True) is None
    model = find_model(config)
    assert (model.folder, model.source) == (None, "config.json on the hub")
    assert model.size.num_layers == SHAPE["num_hidden_layers"]
    # The answer is kept: one question and one download.
    assert len(hub) <= 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/typo", "there is no such model, or it is private: correct the name, or log in with `hf auth login`"),
        ("org/gated", "it is gated: accept its terms at https://huggingface.co/org/gated, then log in"),
        ("org/weights-only", "it has neither config.json nor adapter_config.json, so it is no model"),
        ("org/adapter", "it has no readable config.json, so it is no model to train"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_refused_with_the_reason(hub, tmp_path, name, message):
    with pytest.raises(ConfigError, match=f"cannot fetch actor_rollout_ref.model.path={name} .*{message}"):
        check_model_is_available(run_with(name, tmp_path), is_for_here=True)
    if name != "org/adapter":
        with pytest.raises(ConfigError, match=f"cannot fetch model_path '{name}' .*{message}"):
            opened_model(name).__enter__()


def test_a_gated_model_is_only_a_warning_for_another_machine(hub, tmp_path):
    warning = check_model_is_available(run_with("org/gated", tmp_path), is_for_here=False)
    assert warning.endswith("The run is for another machine, which may be able to")
    with pytest.raises(ConfigError, match="there is no such model"):
        check_model_is_available(run_with("org/typo", tmp_path), is_for_here=False)


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch, tmp_path):
    from rgtrain.models import model_lookup

    monkeypatch.setattr(model_lookup, "_REQUEST_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        go_online(monkeypatch, tmp_path / "hub", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"the hub cannot be reached: .*timed out"):
            fetch_model("org/model", given="model_path 'org/model'")
        assert time.monotonic() - started < 5
    ask_hub.cache_clear()


def test_a_hub_without_a_network_is_named(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    go_online(monkeypatch, tmp_path / "hub", f"http://127.0.0.1:{port}")
    assert "the hub cannot be reached" in ask_hub("org/model").problem
    ask_hub.cache_clear()


def test_a_complete_copy_in_the_cache_needs_no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    older = write_snapshot(tmp_path, "org/cached", {**COMPLETE, "model.safetensors": b""})
    assert cached_snapshot("org/cached") == older == fetch_model("org/cached", given="model_path")
    # The revision of the last download is used unless its copy is incomplete.
    newer = write_snapshot(tmp_path, "org/cached", COMPLETE, revision="b" * 40)
    assert cached_snapshot("org/cached") == older
    (newer / "model.safetensors").touch()
    assert cached_snapshot("org/cached") == newer


def test_an_incomplete_copy_in_the_cache_is_refused_with_the_missing_files(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = {**COMPLETE, "model.safetensors.index.json": json.dumps(INDEX).encode(), "model-1.safetensors": b""}
    folder = write_snapshot(tmp_path, "org/partial", files)
    assert missing_parts(folder) == ["model-2.safetensors"]
    message = r"HF_HUB_OFFLINE is set, and .*; its copy in the cache lacks model-2.safetensors\); give a folder"
    with pytest.raises(ConfigError, match=message):
        check_model_is_available(run_with("org/partial", tmp_path), is_for_here=True)


def test_the_cache_is_found_by_the_hubs_own_variables(monkeypatch, tmp_path):
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, cache in {
        "XDG_CACHE_HOME": tmp_path / "1/huggingface/hub",
        "HF_HOME": tmp_path / "2/hub",
        "HF_HUB_CACHE": tmp_path / "3",
    }.items():
        folder = write_snapshot(cache, "org/cached", {**COMPLETE, "model.safetensors": b""})
        monkeypatch.setenv(variable, str(tmp_path / cache.relative_to(tmp_path).parts[0]))
        assert cached_snapshot("org/cached") == folder


def test_a_known_model_has_its_own_shape_and_another_one_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    known = find_model(run_with("Qwen/Qwen2.5-7B-Instruct", tmp_path))
    assert known.size.num_layers == 28
    assert find_model(run_with("someone/else", tmp_path)).size is None
    given = small_run(tmp_path / "run", "actor_rollout_ref.model.path=someone/else", "model.shape=qwen2.5-3b")
    assert find_model(given).size.num_layers == 36


def test_only_the_template_of_a_hub_model_is_fetched(hub):
    assert cached_template("org/templated") is None
    folder = fetch_template("org/templated")
    assert (folder / "chat_template.jinja").read_bytes() == b"{{ messages }}"
    assert not any(path.endswith(".safetensors") for path in hub)
    assert cached_snapshot("org/templated") is None
    num_asked = len(hub)
    assert fetch_template("org/templated") == cached_template("org/templated") == folder
    assert len(hub) == num_asked
    # A base model may lack it, and a gated model does not show it.
    assert fetch_template("org/model") is fetch_template("org/gated") is None
