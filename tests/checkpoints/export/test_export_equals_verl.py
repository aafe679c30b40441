"""The export of a checkpoint by verl's own checkpoint manager equals the saved model, for all kinds of models."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_files import assert_same_tensors, logits, tiny_model
from support.verl_checkpoints import critic, lora_model, write_all
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from rgtrain.checkpoints.export import export
from rgtrain.errors import ConfigError


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    write_all(folder)
    return folder


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_fsdp1_and_fsdp2_are_exported_bit_for_bit(saved, tmp_path, kind):
    output = export(saved / kind, tmp_path / "exported")
    assert_same_tensors(load_file(output / "model.safetensors"), tiny_model())
    assert AutoTokenizer.from_pretrained(output).chat_template


def test_a_checkpoint_whose_reading_runs_code_is_refused_unless_trusted(saved, tmp_path):
    # FSDP1 without a device mesh saves ShardedTensors.
    with pytest.raises(ConfigError, match=r"needs \S+ to be read, but .* --trust-checkpoint"):
        export(saved / "fsdp1_without_mesh", tmp_path / "exported")
    output = export(saved / "fsdp1_without_mesh", tmp_path / "exported", trust_checkpoint=True)
    assert_same_tensors(load_file(output / "model.safetensors"), tiny_model())


def test_an_adapter_is_merged_as_peft_merges_it(saved, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(export(saved / "lora", tmp_path / "exported", verify=True))
    expected = lora_model().merge_and_unload().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("kind", ["lora", "lora_only"])
def test_an_adapter_is_exported_for_peft(saved, tmp_path, kind):
    said = []
    base = saved / "base" if kind == "lora_only" else None
    output = export(
        saved / kind, tmp_path / "exported", lora="adapter", hf_config_dir=base, verify=True, say=said.append
    )
    assert said[0].startswith("weaker check passed (same as the checkpoint's shards; not compared with the model")
    assert json.loads((output / "adapter_config.json").read_text())["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    loaded = peft.PeftModel.from_pretrained(tiny_model(), output)
    assert torch.equal(logits(loaded), logits(lora_model()))


def test_an_adapter_saved_alone_is_merged_into_the_weights_in_the_config_folder(saved, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(
        export(saved / "lora_only", tmp_path / "exported", hf_config_dir=saved / "base")
    )
    torch.testing.assert_close(logits(loaded), logits(lora_model()))


def test_an_adapter_saved_alone_is_refused_without_its_base_model(saved, tmp_path):
    with pytest.raises(ConfigError, match="give HF_CONFIG_DIR with the base model's weights"):
        export(saved / "lora_only", tmp_path / "exported")


def test_an_adapter_export_without_an_adapter_is_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match="has no LoRA adapter"):
        export(saved / "fsdp2", tmp_path / "exported", lora="adapter")


def test_a_critic_is_exported_as_a_token_classifier(saved, tmp_path):
    output = export(saved / "critic" / "global_step_1" / "critic", tmp_path / "exported", verify=True)
    assert json.loads((output / "config.json").read_text())["architectures"] == ["LlamaForTokenClassification"]
    assert "critic (token classification head)" in (output / "README.md").read_text()
    loaded = AutoModelForTokenClassification.from_pretrained(output)
    assert torch.equal(logits(loaded), logits(critic()))


def test_a_critic_is_detected_by_its_tensors_if_the_config_is_of_the_language_model(saved, tmp_path):
    output = export(saved / "critic" / "global_step_1" / "critic", tmp_path / "exported", hf_config_dir=saved / "base")
    assert AutoModelForTokenClassification.from_pretrained(output).num_labels == 1
