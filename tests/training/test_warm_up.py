"""Processes that warm the caches are started only if the caches are cold."""

import os
import subprocess

import pytest

from rgtrain.training import warm_up


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Record the programs of the processes that would be started."""
    programs: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: programs.append(command[2]))
    return programs


def test_a_written_file_is_in_memory_until_the_cache_is_dropped(tmp_path):
    file = tmp_path / "module.pyc"
    assert not warm_up.are_in_memory([file])
    file.write_bytes(b"x" * 100_000)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        if not warm_up.are_in_memory([file]):
            pytest.skip("this file system does not report which files are in memory")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        dropped = warm_up.are_in_memory([file])
    if "tmpfs" not in subprocess.run(["stat", "-f", "-c", "%T", file], capture_output=True, text=True).stdout:
        assert not dropped


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("cached", ["LlamaForCausalLM", "Qwen2ForCausalLM", None])
def test_only_cold_caches_are_warmed(monkeypatch, tmp_path, tiny_model, started, in_memory, cached):
    monkeypatch.setattr(warm_up, "are_in_memory", lambda files: in_memory)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    if cached:
        (tmp_path / "modelinfos").mkdir()
        (tmp_path / "modelinfos" / f"vllm-model_executor-models-{cached}.json").write_text("{}")
    warm_up.warm_up(str(tiny_model))
    assert len(started) == (not in_memory) + (cached != "LlamaForCausalLM")
    assert any(warm_up._IMPORT_WORKER in program for program in started) == (not in_memory)


def test_the_features_of_a_model_on_the_hub_are_computed(started):
    warm_up.warm_up("some/model")
    assert any(warm_up._INSPECT_MODEL in program for program in started)


def test_every_large_package_has_a_bytecode_file_to_check():
    files = warm_up._bytecode_files()
    assert len(files) == len(warm_up._PACKAGES)
    assert all(file.suffix == ".pyc" for file in files)
