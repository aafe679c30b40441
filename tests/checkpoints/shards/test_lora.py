"""LoRA adapters in a checkpoint are merged, exported alone, or refused."""

import json

import peft
import pytest
import torch
from support.checkpoint_files import logits, tiny_model, write_plain
from support.moe_models import tiny_model as tiny_moe_model
from transformers import AutoModelForCausalLM, GPT2Config

from rgtrain.checkpoints.adapter_config import read_adapter_config
from rgtrain.checkpoints.export import export
from rgtrain.errors import ConfigError
from rgtrain.upstream.adapter_settings import adapter_settings


def write_adapted(step_folder, model, **settings):
    """Write a peft model with the settings that our workers save."""
    actor = write_plain(step_folder, model)
    (actor / "lora_train_meta.json").write_text(json.dumps(adapter_settings(None, model) | settings))
    return actor


def adapted(base=None, **fields):
    """Return a tiny model with a random adapter on some linear layers."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | fields
    )
    model = peft.get_peft_model(tiny_model() if base is None else base, config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and "lora_" not in name:
                torch.nn.init.normal_(tensor)
            elif "lora_embedding_A" in name:
                torch.nn.init.normal_(tensor, std=0.5)
    return model


HONOURED = {
    "plain": {},
    "fractional_alpha": {"lora_alpha": 1.5},
    "rslora": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 1, "layers.1.mlp.down_proj": 9}},
    "rank_pattern": {"rank_pattern": {r"^model\.layers\.0\..*_proj": 2}},
    "all_scales": {
        "alpha_pattern": {r".*\.layers\.1\..*(q_proj|k_proj)$": 1},
        "rank_pattern": {"down_proj": 2},
        "use_rslora": True,
    },
    "trained_biases": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "some_layers": {"layers_to_transform": [1]},
    "exclude_modules": {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("fields", HONOURED.values(), ids=HONOURED)
def test_each_supported_field_is_merged_as_peft_merges_it(tmp_path, fields):
    model = adapted(tiny_model(attention_bias=True), **fields)
    actor = write_adapted(tmp_path / "global_step_1", model)
    loaded = AutoModelForCausalLM.from_pretrained(export(actor, tmp_path / "exported"))
    torch.testing.assert_close(logits(loaded), logits(model))
    torch.testing.assert_close(logits(loaded), logits(model.merge_and_unload()))


@pytest.mark.parametrize("name", ["rslora", "alpha_pattern", "rank_pattern", "all_scales", "some_layers"])
def test_an_adapter_is_exported_with_the_fields_that_set_its_scale(tmp_path, name):
    model = adapted(**HONOURED[name])
    output = export(write_adapted(tmp_path / "global_step_1", model), tmp_path / "exported", lora="adapter")
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(tiny_model(), output)), logits(model))


def test_an_adapter_of_layers_that_store_inputs_by_outputs_is_merged_transposed(tmp_path):
    config = GPT2Config(vocab_size=33, n_positions=32, n_embd=24, n_layer=2, n_head=4)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    # The weight of c_proj in the attention is square, so its shape does not reveal the order.
    model = adapted(base, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True)
    actor = write_adapted(tmp_path / "global_step_1", model)
    loaded = AutoModelForCausalLM.from_pretrained(export(actor, tmp_path / "exported"))
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("lora", ["merged", "adapter"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_an_adapter_of_experts_is_exported(tmp_path, family, lora):
    # For all linear layers, PEFT also targets the parameters of qwen3_moe's experts and router.
    targets = {"target_modules": "all-linear"}
    if family == "gpt_oss":
        targets = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    model = adapted(tiny_moe_model(family), **targets, rank_pattern={"down_proj": 3})
    assert model.peft_config["default"].target_parameters
    actor = write_adapted(tmp_path / "global_step_1", model)
    output = export(actor, tmp_path / "exported", lora=lora)
    if lora == "merged":
        loaded = AutoModelForCausalLM.from_pretrained(output)
    else:
        loaded = peft.PeftModel.from_pretrained(tiny_moe_model(family), output)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("is_saved_once", [False, True])
def test_an_adapter_of_one_of_two_tied_tensors_unties_them(tmp_path, target, is_saved_once):
    model = adapted(tiny_model(tie_word_embeddings=True), target_modules=[target])
    if is_saved_once:
        without = {name: tensor for name, tensor in model.state_dict().items() if "lm_head.base" not in name}
        without = {name: tensor for name, tensor in without.items() if not name.endswith("lm_head.weight")}
        model.state_dict = lambda: without
    actor = write_adapted(tmp_path / "global_step_1", model)
    loaded = AutoModelForCausalLM.from_pretrained(export(actor, tmp_path / "exported"))
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("trainable_token_indices", [3]),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [3]),
        ("use_qalora", True),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 8}),
        ("use_bdlora", {"nblocks": 2}),
        ("ensure_weight_tying", True),
        ("peft_type", "LOHA"),
        ("field_of_a_later_peft", 1),
    ],
)
def test_each_other_field_is_refused_by_name_before_anything_is_written(tmp_path, field, value):
    actor = write_adapted(tmp_path / "global_step_1", adapted(), **{field: value})
    with pytest.raises(ConfigError, match=f"have {field} .*which can't be exported; load the model with peft"):
        export(actor, tmp_path / "exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_1"]


@pytest.mark.parametrize(
    "fields", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}], ids=str
)
def test_an_adapter_whose_base_was_changed_is_not_exported_without_that_base(tmp_path, fields):
    model = adapted(tiny_model(attention_bias=True), **fields)
    actor = write_adapted(tmp_path / "global_step_1", model)
    with pytest.raises(ConfigError, match="besides the adapter: export with --lora merged"):
        export(actor, tmp_path / "exported", lora="adapter")
    [path] = actor.glob("model_*.pt")
    torch.save({name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}, path)
    tiny_model(attention_bias=True).save_pretrained(actor / "huggingface")
    [field] = fields
    with pytest.raises(ConfigError, match=f"only an adapter, but .* has {field} .*, which changed the base"):
        export(actor, tmp_path / "exported")


def test_every_field_of_pefts_configuration_is_applied_irrelevant_or_refused():
    """A field of a later version is refused by name, so that it can't be ignored."""
    defaults = peft.LoraConfig(r=4, lora_alpha=8).to_dict()
    assert read_adapter_config(json.loads(json.dumps(defaults)), where="x").scale_of("a.weight") == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_rslora": "yes"}, "use_rslora yes: write true or false"),
        ({"alpha_pattern": ["q_proj"]}, "no valid alpha_pattern"),
        ({"alpha_pattern": {"(a|a)*(a|a)*": 1}}, "the pattern .* in alpha_pattern"),
        ({"alpha_pattern": {".*a.*b.*c": 1}}, "the pattern .* in alpha_pattern"),
        ({"alpha_pattern": {"(a|a)(a|a)": 1}}, "the pattern .* in alpha_pattern"),
        ({"alpha_pattern": {"(a|a)+": 1}}, "the pattern .* in alpha_pattern"),
        ({"alpha_pattern": {"[z-a]": 1}}, "the pattern .* in alpha_pattern"),
        ({"alpha_pattern": {"a": float("nan")}}, "nan for 'a' in alpha_pattern"),
        ({"alpha_pattern": {"a": 10**400}}, "10000.* for 'a' in alpha_pattern"),
        ({"rank_pattern": {"a": 0}}, "0 for 'a' in rank_pattern"),
        ({"lora_alpha": True}, "no valid LoRA settings"),
    ],
)
def test_an_invalid_value_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        read_adapter_config({"r": 2, "lora_alpha": 4} | fields, where="x")


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
