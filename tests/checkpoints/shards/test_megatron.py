"""verl's merger merges Megatron checkpoints if Megatron is installed and the files are trusted."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from support.checkpoint_files import assert_same_tensors, file_names, tiny_model

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards import megatron
from rgtrain.errors import ConfigError


def write_megatron(folder: Path) -> Path:
    (folder / "model" / "dist_ckpt").mkdir(parents=True)
    (folder / "ckpt_contents.json").write_text(json.dumps({"framework": "megatron"}))
    tiny_model().config.save_pretrained(folder / "model" / "huggingface")
    return folder


def test_a_megatron_checkpoint_is_refused_without_megatron(tmp_path):
    write_megatron(tmp_path / "global_step_3" / "actor")
    with pytest.raises(ConfigError, match=r"is a Megatron checkpoint, .* or install megatron-core"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_megatron_checkpoint_goes_through_verls_merger(tmp_path, monkeypatch):
    folder = write_megatron(tmp_path / "global_step_3" / "actor")
    commands = []

    # A stub, because Megatron needs a GPU and has no wheel for a CPU.
    def run(command, **options):
        commands.append(command)
        tiny_model().save_pretrained(command[-1])
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(megatron.importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(megatron.subprocess, "run", run)
    with pytest.raises(ConfigError, match="merging it runs code in its files: export it with --trust-checkpoint"):
        export(tmp_path, tmp_path / "out")
    output = export(tmp_path, tmp_path / "out", dtype="bf16", trust_checkpoint=True)
    assert commands[0][1:-1] == [
        *("-m", "verl.model_merger", "merge", "--backend", "megatron", "--local_dir", str(folder), "--target_dir")
    ]
    assert_same_tensors(load_file(output / "model.safetensors"), tiny_model().bfloat16())
    assert file_names(tmp_path) == ["global_step_3", "out"]
