"""LoRA adapters in a checkpoint are merged, exported alone, or refused."""

import peft
import pytest
import torch
from support.checkpoint_files import logits, tiny_model, write_plain
from transformers import AutoModelForCausalLM

from rgtrain.checkpoints.export import export
from rgtrain.errors import ConfigError


@pytest.mark.parametrize("lora", ["merged", "adapter"])
def test_adapters_of_embeddings_and_of_single_layers_are_exported(tmp_path, lora):
    targets = ["embed_tokens", "layers.1.mlp.up_proj"]
    model = peft.get_peft_model(
        tiny_model(), peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, init_lora_weights=False)
    )
    torch.nn.init.normal_(model.base_model.model.model.embed_tokens.lora_embedding_A["default"])
    actor = write_plain(tmp_path / "global_step_1", model, world_size=2)
    (actor / "lora_train_meta.json").write_text('{"r": 3, "lora_alpha": 7}')
    output = export(actor, tmp_path / "exported", lora=lora, verify=True)
    if lora == "merged":
        loaded = AutoModelForCausalLM.from_pretrained(output)
    else:
        loaded = peft.PeftModel.from_pretrained(tiny_model(), output)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_an_adapter_without_its_settings_is_refused_with_an_example(tmp_path):
    factors = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(2, 24)}
    actor = write_plain(tmp_path / "global_step_1", tiny_model(), more=factors)
    with pytest.raises(ConfigError, match=r'no lora_train_meta.json with its scale: write one like {"r": 16, '):
        export(actor, tmp_path / "exported")
    (actor / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 4}')
    with pytest.raises(ConfigError, match=r"'model.layers.0.mlp.up_proj' has only one of its two factors"):
        export(actor, tmp_path / "exported")
    (actor / "lora_train_meta.json").write_text('{"r": 3, "lora_alpha": 4}')
    with pytest.raises(ConfigError, match=r"up_proj.lora_A.default.weight' has shape \[2, 24\] .* require \[3, 24\]"):
        export(actor, tmp_path / "exported")


def test_an_adapter_of_a_weight_that_is_not_a_matrix_is_not_merged(tmp_path):
    module = "base_model.model.model.norm"
    factors = {f"{module}.lora_A.default.weight": torch.zeros(2, 24)}
    factors |= {f"{module}.lora_B.default.weight": torch.zeros(24, 2)}
    actor = write_plain(tmp_path / "global_step_1", tiny_model(), more=factors)
    (actor / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 4}')
    with pytest.raises(ConfigError, match=r"adapter of 'model.norm.weight' has shape \[24, 24\] but the tensor \[24\]"):
        export(actor, tmp_path / "exported")


def test_a_module_that_was_trained_in_full_is_exported_only_with_merged_weights(tmp_path):
    adapted = peft.LoraConfig(r=2, target_modules=["up_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), adapted)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    actor = write_plain(tmp_path / "global_step_1", model)
    (actor / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 8}')
    with pytest.raises(ConfigError, match="'lm_head.weight' was trained in full besides the adapter"):
        export(actor, tmp_path / "exported", lora="adapter")
    loaded = AutoModelForCausalLM.from_pretrained(export(actor, tmp_path / "exported"))
    assert torch.equal(loaded.lm_head.weight, 2 * tiny_model().lm_head.weight)
