"""The exported model equals the checkpoint bit for bit and has the requested form."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support.checkpoint_files import assert_same_tensors, logits, tiny_model, write_checkpoint, write_plain
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.trained_problems import TRAINED_PROBLEMS, read_trained_problems
from rgtrain.checkpoints.trained_prompt import TrainedPrompt, read_trained_prompt
from rgtrain.commands import export_command
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

CLI = PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py"


@pytest.mark.parametrize(("world_size", "num_replicas"), [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (6, 2)])
def test_the_export_of_any_world_size_and_mesh_equals_the_model_bit_for_bit(tmp_path, world_size, num_replicas):
    model = tiny_model()
    write_checkpoint(tmp_path / "global_step_1", model, world_size=world_size, num_replicas=num_replicas)
    output = export(tmp_path / "global_step_1", tmp_path / "exported")
    assert_same_tensors(load_file(output / "model.safetensors"), model)


def test_a_value_head_of_trl_is_exported_and_verified(tmp_path):
    head = {"v_head.summary.weight": torch.randn(1, 24), "v_head.summary.bias": torch.randn(1)}
    actor = write_plain(tmp_path / "global_step_1", tiny_model(), more=head)
    output = export(actor, tmp_path / "exported", verify=True)
    written = load_file(output / "model.safetensors")
    assert torch.equal(written["v_head.summary.weight"], head["v_head.summary.weight"])
    assert "critic (language model with trl's value head)" in (output / "README.md").read_text()


def test_a_sequence_classifier_is_distinguished_from_a_token_classifier(tmp_path):
    model = tiny_model(auto_class=AutoModelForSequenceClassification, num_labels=3, pad_token_id=0)
    output = export(write_checkpoint(tmp_path / "global_step_1", model, world_size=2), tmp_path / "out", verify=True)
    assert_same_tensors(AutoModelForSequenceClassification.from_pretrained(output).state_dict(), model)


def test_no_process_group_is_needed_or_created(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    assert not dist.is_initialized()
    export(actor, tmp_path / "exported")
    assert not dist.is_initialized()


@pytest.mark.parametrize("named", ["global_step_1", "global_step_1/actor"])
def test_the_export_knows_the_training_problems_and_prompts_of_its_checkpoint(tmp_path, named):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    (tmp_path / "global_step_1" / TRAINED_PROBLEMS).write_text(f"{'a' * 16}\n")
    (tmp_path / "config.yaml").write_text("{trainer: {}, data: {prompt: {system_prompt: direct, role: user}}}")
    exported = export(tmp_path / named, tmp_path / "exported")
    trained = read_trained_problems(exported)
    assert len(trained) == 1 and "a" * 16 in trained
    (tmp_path / "config.yaml").unlink()
    assert read_trained_prompt(exported) == TrainedPrompt("direct", "user", 0, 0)


@pytest.mark.parametrize("content", [None, "damaged"])
def test_an_export_without_a_valid_record_of_training_problems_has_none(tmp_path, content):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    if content is not None:
        (tmp_path / "global_step_1" / TRAINED_PROBLEMS).write_text(content)
    assert read_trained_problems(export(tmp_path / "global_step_1", tmp_path / "exported")) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_computes_the_same_logits_from_the_export(tmp_path, dtype):
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


def test_tied_embeddings_that_differ_are_exported_untied(tmp_path, caplog):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    tiny_model(tie_word_embeddings=True).config.save_pretrained(actor / "huggingface")
    loaded = AutoModelForCausalLM.from_pretrained(export(actor, tmp_path / "exported"))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.tie_word_embeddings is False
    assert "the config ties 'lm_head.weight' to" in caplog.text


def test_a_requested_dtype_is_written_and_recorded_in_the_config(tmp_path):
    model = tiny_model()
    write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    output = export(tmp_path / "global_step_1", tmp_path / "exported", dtype="bf16")
    assert_same_tensors(load_file(output / "model.safetensors"), model.bfloat16())
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_config_records_the_dtype_of_the_weights_even_if_the_base_model_has_another(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(dtype=torch.float32), world_size=2)
    tiny_model(dtype=torch.bfloat16).config.save_pretrained(actor / "huggingface")
    output = export(actor, tmp_path / "exported")
    assert AutoModelForCausalLM.from_pretrained(output).dtype == torch.float32


def test_the_command_works_from_any_directory(tmp_path):
    model = tiny_model()
    write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    done = subprocess.run([sys.executable, CLI, "global_step_1", "own"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "own\n"), done.stderr
    assert_same_tensors(load_file(tmp_path / "own" / "model.safetensors"), model)


def test_the_command_takes_a_config_folder_and_a_dtype(tmp_path, monkeypatch, capsys):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    monkeypatch.chdir(tmp_path)
    # In this process, which has already loaded torch.
    export_command.main(["global_step_1", str(actor / "huggingface"), "--dtype", "fp32", "given"], program="export")
    assert capsys.readouterr().out == "given\n"
    assert_same_tensors(load_file(tmp_path / "given" / "model.safetensors"), model)


@pytest.mark.parametrize("size", ["", "0", "5 apples", "-1GB"])
def test_an_invalid_shard_size_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match="max_shard_size .* is not a size"):
        export(tmp_path, tmp_path / "out", max_shard_size=size)
