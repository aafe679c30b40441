"""The output folder is written atomically and never overwritten without --force."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from support.checkpoint_files import assert_same_tensors, file_names, tiny_model, write_checkpoint

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.export.output_folder import atomic_folder
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

CLI = PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py"


def test_an_empty_folder_is_filled(tmp_path):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    (tmp_path / "exported").mkdir()
    assert (export(tmp_path / "global_step_1", tmp_path / "exported") / "config.json").exists()


def test_force_replaces_only_a_model(step, tmp_path):
    output = export(step, tmp_path / "exported")
    with pytest.raises(ConfigError, match="is not empty: give a new folder, or replace it with --force"):
        export(step, output)
    (output / "older.txt").write_text("")
    export(step, output, force=True)
    assert "older.txt" not in file_names(output)
    assert file_names(tmp_path) == ["exported", "run"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="is not a model folder, and --force replaces only those"):
        export(step, tmp_path / "notes", force=True)
    assert file_names(tmp_path / "notes") == ["mine"]


def test_force_never_replaces_a_source_of_the_export(step):
    with pytest.raises(ConfigError, match=r"holds '.*huggingface', which the export reads"):
        export(step, step / "actor" / "huggingface", force=True)
    assert (step / "actor" / "huggingface" / "config.json").is_file()


def test_a_failed_replacement_keeps_the_old_model(step, tmp_path):
    output = export(step, tmp_path / "exported")
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="unknown dtype"):
        export(step, output, force=True, dtype="fp12")
    with pytest.raises(ConfigError, match="no LoRA adapter"):
        export(step, output, force=True, lora="adapter")
    assert (output / "model.safetensors").read_bytes() == before


def test_a_killed_export_leaves_no_output_and_can_be_repeated(step, tmp_path):
    killed = "exporting._write_config_and_card = lambda *a: os.kill(os.getpid(), signal.SIGKILL)"
    call = f"exporting.export({str(step)!r}, 'out')"
    code = f"import os, signal; from rgtrain.checkpoints.export import exporting; {killed}; {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    assert file_names(tmp_path) == [".out.partial", "run"]
    assert_same_tensors(load_file(export(step, tmp_path / "out") / "model.safetensors"), tiny_model())
    assert file_names(tmp_path) == ["out", "run"]


def test_a_replacement_killed_between_its_renames_is_undone(step, tmp_path):
    export(step, tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(ConfigError, match="is not empty"):
        export(step, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert file_names(tmp_path) == ["out", "run"]


def test_a_second_export_to_the_same_output_is_refused(step, tmp_path):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"another export to this output is running in '.*\.out\.partial'"):
            export(step, tmp_path / "out")
    assert file_names(tmp_path / "out") == ["config.json"]


def test_insufficient_disk_space_is_reported_before_any_file_is_written(step, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(
        ConfigError, match=r"not enough disk space for the output, which needs 0.00 GB, while '.*' has 0.00 GB"
    ):
        export(step, tmp_path / "out")
    assert file_names(tmp_path) == ["run"]


def test_a_full_disk_leaves_no_files_behind(step, tmp_path):
    # This limit on the size of files (in KB) has the same effect as a full disk.
    command = f"ulimit -f 8; exec {sys.executable} {CLI} {step} out"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: can't write to ")
    assert "File too large" in done.stderr
    assert file_names(tmp_path) == ["run"]


def test_a_link_with_the_name_of_the_temporary_folder_is_not_followed(step, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="can't write to"):
        export(step, tmp_path / "out")
    assert file_names(tmp_path / "mine") == ["kept"]
