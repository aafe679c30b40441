import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_files import assert_same_tensors, logits, tiny_model, write_checkpoint, write_tensor, write_unsharded
from safetensors.torch import load_file
from torch.distributed.tensor import Replicate, Shard
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rgtrain.checkpoints import export
from rgtrain.checkpoints.finding import find_checkpoint
from rgtrain.checkpoints.joining import RankFiles
from rgtrain.checkpoints.samples import rank_file
from rgtrain.checkpoints.tensors import whole

CLI = Path(__file__).parents[1] / "utils" / "load_fsdp_to_hf.py"


@pytest.mark.parametrize(("world_size", "num_replicas"), [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (6, 2)])
def test_the_export_of_any_world_size_and_mesh_is_the_model_bit_for_bit(tmp_path, world_size, num_replicas):
    model = tiny_model()
    write_checkpoint(tmp_path / "global_step_1", model, world_size=world_size, num_replicas=num_replicas)
    output = export(tmp_path / "global_step_1", tmp_path / "exported")
    assert_same_tensors(load_file(output / "model.safetensors"), model)


def test_shards_along_other_dimensions_are_put_together_bit_for_bit(tmp_path):
    model = tiny_model(intermediate_size=6)
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=4, even_dimensions=True)
    placed = torch.load(rank_file(actor, 4, 0), weights_only=True)["model.layers.0.mlp.up_proj.weight"]
    assert placed.placements == (Shard(1),)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


@pytest.mark.parametrize(
    "placements", [[Shard(0), Shard(0)], [Shard(0), Shard(1)], [Replicate(), Shard(1)], [Replicate(), Replicate()]]
)
@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (0, 4)])
def test_every_placement_on_a_two_dimensional_mesh_is_put_together(tmp_path, placements, shape):
    tensor = torch.randn(shape)
    write_tensor(tmp_path, tensor, mesh_shape=(2, 2), placements=placements)
    assert torch.equal(whole(RankFiles(find_checkpoint(tmp_path).rank_files).join("weight")), tensor)


@pytest.mark.parametrize("world_size", [1, 2])
def test_plain_tensors_are_taken_as_the_whole_that_each_rank_holds(tmp_path, world_size):
    model = tiny_model()
    actor = write_unsharded(tmp_path / "global_step_1", model, world_size=world_size)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


def test_no_process_group_is_needed_or_made(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    assert not dist.is_initialized()
    export(actor, tmp_path / "exported")
    assert not dist.is_initialized()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_export_to_the_same_logits(tmp_path, dtype):
    model = tiny_model(dtype=dtype)
    write_checkpoint(tmp_path / "global_step_1", model, world_size=3)
    loaded = AutoModelForCausalLM.from_pretrained(export(tmp_path / "global_step_1", tmp_path / "exported"))
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))


def test_tied_embeddings_are_written_once_and_tied_again_on_loading(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    output = export(tmp_path / "global_step_1", tmp_path / "exported")
    assert "lm_head.weight" not in load_file(output / "model.safetensors")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(output)), logits(model))


def test_embeddings_that_training_drove_apart_are_exported_untied(tmp_path, caplog):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    tiny_model(tie_word_embeddings=True).config.save_pretrained(actor / "huggingface")
    loaded = AutoModelForCausalLM.from_pretrained(export(actor, tmp_path / "exported"))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.tie_word_embeddings is False
    assert "'lm_head.weight' is tied" in caplog.text


def test_an_asked_for_dtype_is_written_and_named_in_the_config(tmp_path):
    model = tiny_model()
    write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    output = export(tmp_path / "global_step_1", tmp_path / "exported", dtype="bf16")
    assert_same_tensors(load_file(output / "model.safetensors"), model.bfloat16())
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_config_names_the_dtype_of_the_weights_where_the_base_had_another(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(dtype=torch.float32), world_size=2)
    tiny_model(dtype=torch.bfloat16).config.save_pretrained(actor / "huggingface")
    output = export(actor, tmp_path / "exported")
    assert AutoModelForCausalLM.from_pretrained(output).dtype == torch.float32


def test_weights_beyond_the_size_of_one_file_go_to_several_with_an_index(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    output = export(actor, tmp_path / "exported", max_shard_size="10KB")
    assert len(list(output.glob("model-*-of-*.safetensors"))) > 1
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(output).state_dict(), model)


def test_tokenizer_chat_template_and_generation_config_come_along(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    GenerationConfig(temperature=0.3, do_sample=True).save_pretrained(actor / "huggingface")
    output = export(actor, tmp_path / "exported")
    turns = [{"role": "user", "content": "7 8"}]
    assert AutoTokenizer.from_pretrained(output).apply_chat_template(turns, tokenize=False) == "<user> 7 8 "
    assert GenerationConfig.from_pretrained(output).temperature == 0.3


def test_weights_and_readme_of_the_config_folder_do_not_come_along(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=1)
    tiny_model(seed=1).save_pretrained(tmp_path / "base", max_shard_size="10KB")
    (tmp_path / "base" / "README.md").write_text("the base")
    output = export(actor, tmp_path / "exported", hf_config_dir=tmp_path / "base")
    weights_and_config = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in output.iterdir()} == weights_and_config | {"README.md"}
    assert "the base" not in (output / "README.md").read_text()


def test_a_folder_of_steps_yields_the_step_that_the_tracker_names(tmp_path):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path / "checkpoints" / f"global_step_{step}", tiny_model(), world_size=1)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    assert find_checkpoint(tmp_path / "checkpoints").folder.parent.name == "global_step_10"
    assert find_checkpoint(tmp_path).folder.parent.name == "global_step_10"


def test_without_a_tracker_the_highest_complete_step_is_taken_and_the_skipped_one_named(tmp_path, caplog):
    for step in (9, 10, 11):
        write_checkpoint(tmp_path / f"global_step_{step}", tiny_model(), world_size=2)
    rank_file(tmp_path / "global_step_11" / "actor", 2, 1).unlink()
    assert find_checkpoint(tmp_path).folder.parent.name == "global_step_10"
    assert "global_step_11" in caplog.text


def test_an_empty_folder_is_filled(tmp_path):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    (tmp_path / "exported").mkdir()
    assert (export(tmp_path / "global_step_1", tmp_path / "exported") / "config.json").exists()


def test_the_command_works_from_any_directory_with_and_without_a_config_folder(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    for arguments in (["global_step_1", "own"], ["global_step_1", actor / "huggingface", "--dtype", "fp32", "given"]):
        done = subprocess.run([sys.executable, CLI, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{arguments[-1]}\n"), done.stderr
        assert_same_tensors(load_file(tmp_path / arguments[-1] / "model.safetensors"), model)
