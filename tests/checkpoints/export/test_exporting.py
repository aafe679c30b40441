import json
import re
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support.checkpoint_files import (
    assert_same_tensors,
    logits,
    tiny_model,
    write_checkpoint,
    write_plain,
    write_tensor,
)
from torch.distributed.tensor import Replicate, Shard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from rgtrain.checkpoints.checkpoint_lookup import find_checkpoint
from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.random_checkpoints import rank_file
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.checkpoints.shards.tensors import whole
from rgtrain.paths import PROJECT_ROOT

CLI = PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py"


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
    actor = write_plain(tmp_path / "global_step_1", model, world_size=world_size)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


@pytest.mark.parametrize("split_dim", [0, 1])
def test_plain_tensors_that_are_parts_are_put_together_to_the_configs_shapes(tmp_path, split_dim):
    model = tiny_model()
    actor = write_plain(tmp_path / "global_step_1", model, world_size=3, split_dim=split_dim)
    assert_same_tensors(load_file(export(actor, tmp_path / "exported") / "model.safetensors"), model)


def test_scalars_and_integers_are_exported_too(tmp_path):
    torch.save({"scale": torch.tensor(2.5), "count": torch.arange(3)}, tmp_path / "model_world_size_1_rank_0.pt")
    files = RankFiles(find_checkpoint(tmp_path).rank_files)
    assert torch.equal(whole(files.join("scale")), torch.tensor(2.5))
    assert torch.equal(whole(files.join("count")), torch.arange(3))


def test_what_was_saved_on_a_gpu_is_read_without_one(tmp_path):
    # As torch marks data of a GPU's; it isn't asked for again.
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
    assert "model_world_size_2_rank_0.pt was saved without checksums" in caplog.text


def test_a_value_head_of_trl_is_kept_and_verified(tmp_path):
    head = {"v_head.summary.weight": torch.randn(1, 24), "v_head.summary.bias": torch.randn(1)}
    actor = write_plain(tmp_path / "global_step_1", tiny_model(), more=head)
    output = export(actor, tmp_path / "exported", verify=True)
    written = load_file(output / "model.safetensors")
    assert torch.equal(written["v_head.summary.weight"], head["v_head.summary.weight"])
    assert "critic (language model with trl's value head)" in (output / "README.md").read_text()


def test_a_sequence_classifier_is_told_from_a_token_classifier(tmp_path):
    model = tiny_model(auto_class=AutoModelForSequenceClassification, num_labels=3, pad_token_id=0)
    output = export(write_checkpoint(tmp_path / "global_step_1", model, world_size=2), tmp_path / "out", verify=True)
    assert_same_tensors(AutoModelForSequenceClassification.from_pretrained(output).state_dict(), model)


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


@pytest.mark.parametrize(("step", "taken"), [(None, 10), ("last", 10), ("best", 5), (15, 15), ("15", 15)])
def test_a_step_of_a_run_is_chosen_by_name_or_number(tmp_path, step, taken):
    for number in (5, 10, 15):
        write_checkpoint(tmp_path / "checkpoints" / f"global_step_{number}", tiny_model(), world_size=1)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    (tmp_path / "checkpoints" / "best_score.json").write_text('{"step": 5, "score": 0.5}')
    assert find_checkpoint(tmp_path, step=step).step == taken


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_verification_prints_how_far_the_logits_are_apart(tmp_path, dtype):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(tie_word_embeddings=True), world_size=2)
    said = []
    export(tmp_path, tmp_path / "exported", dtype=dtype, verify=True, say=said.append)
    (difference,) = re.findall(r"^verified: largest difference of logits (\S+), of logits up to", said[0])
    assert (float(difference) == 0) == (dtype is None)


def test_the_command_works_from_any_directory_with_and_without_a_config_folder(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    for arguments in (["global_step_1", "own"], ["global_step_1", actor / "huggingface", "--dtype", "fp32", "given"]):
        done = subprocess.run([sys.executable, CLI, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{arguments[-1]}\n"), done.stderr
        assert_same_tensors(load_file(tmp_path / arguments[-1] / "model.safetensors"), model)
