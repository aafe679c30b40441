"""A rank file is read regardless of the device and the options with which torch saved it."""

import torch
from safetensors.torch import load_file
from support.checkpoint_files import (
    assert_same_tensors,
    tiny_model,
    write_checkpoint,
)

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.random_checkpoints import rank_file


def test_a_file_saved_on_a_gpu_is_read_without_one(tmp_path):
    # Tag the data as torch tags data on a GPU. The second function is not called.
    torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
    try:
        write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    finally:
        torch.serialization._package_registry.pop(0)
    assert b"cuda:0" in rank_file(tmp_path / "global_step_1" / "actor", 2, 0).read_bytes()
    assert_same_tensors(load_file(export(tmp_path, tmp_path / "exported") / "model.safetensors"), tiny_model())


def test_shards_without_checksums_are_read_with_a_warning(tmp_path, caplog):
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same_tensors(load_file(export(tmp_path, tmp_path / "exported") / "model.safetensors"), tiny_model())
    assert "model_world_size_2_rank_0.pt was saved without checksums, so damage" in caplog.text
