"""Tensors are written to one or more files, and values that are not finite are refused."""

import os
import pty
import subprocess
import sys
import termios

import pytest
import torch
from support.checkpoint_files import (
    assert_same_tensors,
    tiny_model,
    write_checkpoint,
)
from transformers import AutoModelForCausalLM

from rgtrain.checkpoints.export import export
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

CLI = PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py"


def test_large_weights_are_split_into_several_files_with_an_index(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    output = export(actor, tmp_path / "exported", max_shard_size="10KB")
    assert len(list(output.glob("model-*-of-*.safetensors"))) > 1
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(output).state_dict(), model)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_not_finite_are_reported_and_no_file_is_left(tmp_path, value):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[1, 2] = float(value)
    write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    count = "1 NaN and 0 infinite" if value == "nan" else "0 NaN and 1 infinite"
    with pytest.raises(ConfigError, match=f"'lm_head.weight' holds {count} of 792 values"):
        export(tmp_path / "global_step_1", tmp_path / "new" / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["global_step_1"]


def test_values_too_large_for_the_requested_dtype_are_refused(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[1, 2] = 1e6
    write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    with pytest.raises(ConfigError, match=r"'lm_head.weight' holds values too large for torch.float16"):
        export(tmp_path / "global_step_1", tmp_path / "exported", dtype="fp16")


def test_progress_is_shown_in_bytes_on_a_terminal(step, tmp_path):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    done = subprocess.run([sys.executable, CLI, step, "out"], cwd=tmp_path, stderr=end, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert b"global_step_20/actor: 100%" in (shown := os.read(terminal, 10_000))
    assert b"kB/s" in shown or b"MB/s" in shown
