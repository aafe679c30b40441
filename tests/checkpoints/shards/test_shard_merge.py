"""The shards of a tensor are merged to the whole for every placement."""

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_files import (
    assert_same_tensors,
    tiny_model,
    write_checkpoint,
    write_plain,
    write_tensor,
)
from torch.distributed.tensor import Replicate, Shard

from rgtrain.checkpoints.checkpoint_lookup import find_checkpoint
from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.random_checkpoints import rank_file
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.checkpoints.shards.tensors import read_all


def test_shards_along_other_dimensions_are_merged_bit_for_bit(tmp_path):
    model = tiny_model(intermediate_size=6)
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=4, even_dimensions=True)
    placed = torch.load(rank_file(actor, 4, 0), weights_only=True)["model.layers.0.mlp.up_proj.weight"]
    assert placed.placements == (Shard(1),)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


@pytest.mark.parametrize(
    "placements", [[Shard(0), Shard(0)], [Shard(0), Shard(1)], [Replicate(), Shard(1)], [Replicate(), Replicate()]]
)
@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (0, 4)])
def test_every_placement_on_a_two_dimensional_mesh_is_merged(tmp_path, placements, shape):
    tensor = torch.randn(shape)
    write_tensor(tmp_path, tensor, mesh_shape=(2, 2), placements=placements)
    assert torch.equal(read_all(RankFiles(find_checkpoint(tmp_path).rank_files).merge("weight")), tensor)


@pytest.mark.parametrize("world_size", [1, 2])
def test_equal_plain_tensors_on_all_ranks_are_copies_of_the_whole(tmp_path, world_size):
    model = tiny_model()
    actor = write_plain(tmp_path / "global_step_1", model, world_size=world_size)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


@pytest.mark.parametrize("split_dim", [0, 1])
def test_plain_tensors_that_are_parts_are_merged_to_the_shapes_of_the_config(tmp_path, split_dim):
    model = tiny_model()
    actor = write_plain(tmp_path / "global_step_1", model, world_size=3, split_dim=split_dim)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


def test_scalars_and_integers_are_exported_too(tmp_path):
    torch.save({"scale": torch.tensor(2.5), "count": torch.arange(3)}, tmp_path / "model_world_size_1_rank_0.pt")
    files = RankFiles(find_checkpoint(tmp_path).rank_files)
    assert torch.equal(read_all(files.merge("scale")), torch.tensor(2.5))
    assert torch.equal(read_all(files.merge("count")), torch.arange(3))
