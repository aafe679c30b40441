"""The exported config describes the written weights, in keys that transformers 4 reads too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_files import tiny_model, write_plain
from support.families import make_model
from support.moe_models import tiny_model as moe_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.hugging_face import copy_model_files
from rgtrain.errors import ConfigError

QUANTIZED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}


def change(folder: Path, **changes: Any) -> None:
    """Change values in the config.json of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def exported_config(tmp_path: Path, model: Any = None, **changes: Any) -> dict[str, Any]:
    actor = write_plain(tmp_path / "global_step_1", tiny_model() if model is None else model)
    change(actor / "huggingface", **changes)
    return json.loads((export(actor, tmp_path / "out") / "config.json").read_text())


@pytest.mark.parametrize("method", QUANTIZED)
def test_the_quantization_of_the_base_model_is_left_out(method, tmp_path):
    tiny_model().config.save_pretrained(tmp_path / "model")
    nested = {"text_config": {"quantization_config": QUANTIZED[method]}, "compression_config": {}}
    change(tmp_path / "model", quantization_config=QUANTIZED[method], **nested)
    (tmp_path / "copies").mkdir()
    files = copy_model_files(tmp_path / "model", tmp_path / "copies", trust=False)
    assert files.config == json.loads((tmp_path / "copies" / "config.json").read_text())
    assert files.quantization == method
    assert "quant" not in json.dumps(files.config) and "compression_config" not in files.config


def test_an_export_with_a_quantized_base_model_is_loaded_as_plain_weights(tmp_path):
    assert "quantization_config" not in exported_config(tmp_path, quantization_config=QUANTIZED["fp8"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_the_name_of_the_base_models_folder_is_left_out(tmp_path):
    assert "_name_or_path" not in exported_config(tmp_path, _name_or_path="/home/someone/model")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_of_the_weights_stands_under_both_names(key, tmp_path):
    config = exported_config(tmp_path, tiny_model(dtype=torch.bfloat16), **{key: "float16"})
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_the_version_that_saved_the_tokenizer_is_kept(tmp_path):
    assert exported_config(tmp_path, transformers_version="4.51.0")["transformers_version"] == "4.51.0"


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_always_stated_because_defaults_differ_between_versions(tied, tmp_path):
    assert exported_config(tmp_path, tiny_model(tie_word_embeddings=tied))["tie_word_embeddings"] is tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_multimodal_config_states_the_same_at_both_levels(tied, tmp_path):
    model = make_model("qwen2_5_vl", tie_word_embeddings=tied)
    config = exported_config(tmp_path, model, text_config=model.config.text_config.to_dict() | {"dtype": "float16"})
    assert (config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]) == (tied, tied)
    assert (config["dtype"], config["text_config"]["dtype"]) == ("float32", "float32")


def test_the_architecture_is_that_of_the_written_model(tmp_path):
    assert exported_config(tmp_path, architectures=["FSDPLlamaForCausalLM"])["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("family", "rope", "expected"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ("qwen2", YARN, {"rope_theta": 1e6, "rope_scaling": {**YARN, "rope_theta": None}}),
        (
            "phi",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        ),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
        ),
    ],
)
def test_rotary_embeddings_stand_under_the_keys_of_transformers_4(family, rope, expected, tmp_path):
    config = exported_config(tmp_path, moe_model(family, rope_parameters=rope))
    for key, value in expected.items():
        want = value if key != "rope_scaling" else {name: one for name, one in value.items() if one is not None}
        assert config[key] == want
    loaded = AutoConfig.from_pretrained(tmp_path / "out").rope_parameters
    assert loaded == rope


def test_gemma_3_has_a_second_base_for_its_local_layers(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    }
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "head_dim": 32}
    config = exported_config(tmp_path, moe_model("gemma3_text", rope_parameters=rope, **layers))
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 5e3)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == rope


def test_the_number_of_experts_stands_under_both_of_its_names(tmp_path):
    config = exported_config(tmp_path, moe_model("qwen3_moe"))
    assert (config["num_experts"], config["num_local_experts"]) == (4, 4)


def test_a_resized_vocabulary_and_several_end_tokens_are_kept(tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(40)
    actor = write_plain(tmp_path / "global_step_1", model)
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(actor / "huggingface")
    output = export(actor, tmp_path / "out")
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 40
    assert AutoModelForCausalLM.from_pretrained(output).generation_config.eos_token_id == [2, 7]


def test_an_adapter_of_a_quantized_base_model_is_exported_but_not_merged(tmp_path):
    factors = {f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.default.weight" for side in "AB"}
    shapes = {"A": (2, 24), "B": (5, 2)}
    actor = write_plain(tmp_path / "global_step_1", tiny_model())
    torch.save({name: torch.randn(shapes[name[-16]]) for name in factors}, actor / "model_world_size_1_rank_0.pt")
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}))
    tiny_model().save_pretrained(actor / "huggingface")
    change(actor / "huggingface", quantization_config=QUANTIZED["fp8"])
    with pytest.raises(ConfigError, match=r"is quantized \(fp8\), so an adapter can't be merged"):
        export(actor, tmp_path / "out")
    assert (export(actor, tmp_path / "adapter", lora="adapter") / "adapter_model.safetensors").is_file()
