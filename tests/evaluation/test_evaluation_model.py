"""Each form in which the model of an evaluation can be given."""

import json
import shutil
from pathlib import Path

import pytest
from support.checkpoint_files import tiny_model as make_tiny_model
from support.checkpoint_files import write_checkpoint
from transformers import AutoModelForCausalLM

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_config import load_config
from rgtrain.evaluation.evaluation_model import find_model, opened_model


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "lacks config.json"),
        ("tokenizer.json", "lacks a tokenizer"),
        ("model.safetensors", "lacks weights"),
    ],
)
def test_an_incomplete_model_folder_is_refused(write_file, model_folder, missing, message):
    (model_folder / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        load_config(write_file())


def test_a_hub_name_is_not_changed(write_file):
    assert load_config(write_file(model_path="Qwen/Qwen2.5-3B-Instruct")).model_path == "Qwen/Qwen2.5-3B-Instruct"


def test_an_adapter_is_found_with_its_base_and_rank(write_adapter):
    # vLLM applies use_rslora, and the other fields have no effect on it.
    plain = {"use_rslora": True, "rank_pattern": {}, "bias": "none", "init_lora_weights": "eva", "lora_dropout": 0.1}
    with opened_model(str(write_adapter(**plain))) as model:
        assert model.adapter.name == "adapter"
        assert model.folder.name == "model"
        assert model.adapter_rank == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "can't apply the adapter .* because of its use_dora true; merge it"),
        ({"peft_type": "IA3"}, "because of its peft_type IA3"),
        ({"alpha_pattern": {"q_proj": 32}}, r'because of its alpha_pattern {"q_proj": 32}'),
        ({"rank_pattern": {"q_proj": 4}}, "because of its rank_pattern"),
        ({"bias": "lora_only"}, "because of its bias lora_only"),
        ({"lora_bias": True}, "because of its lora_bias true"),
        ({"modules_to_save": ["lm_head"]}, "because of its modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "because of its init_lora_weights pissa_niter_4"),
        ({"trainable_token_indices": [5]}, "because of its trainable_token_indices"),
        ({"alora_invocation_tokens": [5, 6]}, "because of its alora_invocation_tokens"),
        ({"field_of_a_later_peft": 2}, "because of its field_of_a_later_peft 2"),
        ({"r": 1024}, "because of its r 1024"),
        ({"base_model_name_or_path": None}, "does not name its base model; set base_model"),
    ],
)
def test_an_adapter_that_vllm_cannot_load_is_refused(write_adapter, changes, message):
    with pytest.raises(ConfigError, match=message), opened_model(str(write_adapter(**changes))):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 200_000])
def test_the_error_names_a_damaged_adapter_file(write_adapter, content):
    folder = write_adapter()
    (folder / "adapter_config.json").write_text(content)
    message = r"adapter_config\.json' (is not valid JSON \(.*\)|holds a JSON list, .*): restore or replace it"
    with pytest.raises(ConfigError, match=message):
        opened_model(str(folder)).__enter__()


def test_a_base_model_is_refused_for_a_folder_without_an_adapter(model_folder):
    opened = opened_model(str(model_folder), base_model="other")
    with pytest.raises(ConfigError, match="base_model is for LoRA adapters"), opened:
        pass


@pytest.fixture
def write_adapter(tmp_path, model_folder):
    def write(**changes) -> Path:
        config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(model_folder)}
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        (folder / "adapter_model.safetensors").write_text("")
        return folder

    return write


def test_a_cached_hub_model_needs_no_network(model_folder, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--org--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model_folder, cached / "snapshots" / ("0" * 40))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with opened_model("org/small") as model:
        assert (model.folder / "config.json").is_file()
    with pytest.raises(ConfigError, match="cannot fetch model_path 'org/other'"), opened_model("org/other"):
        pass


def test_a_models_digest_changes_with_its_weights(model_folder):
    with opened_model(str(model_folder)) as model:
        before = model.digest()
        assert model.digest() == before
        (model_folder / "model.safetensors").write_text("other")
        assert model.digest() != before


def test_a_training_run_its_steps_and_their_actor_folders_can_be_evaluated(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "global_step_20"
    write_checkpoint(step, make_tiny_model(), world_size=2)
    for path in (tmp_path / "run", step, step / "actor"):
        with opened_model(find_model(str(path))) as model:
            AutoModelForCausalLM.from_pretrained(model.folder)
        assert not model.folder.exists()
