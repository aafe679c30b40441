"""The computed numbers of parameters of models and adapters equal the real ones."""

from dataclasses import replace

import pytest
import torch
from support.memory_settings import SETTINGS
from support.published_models import PUBLISHED_NUM_PARAMETERS

from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight.sizes import ModelSize


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_equal_the_published_ones(name):
    assert ModelSize.of(SHAPES[name]).total == PUBLISHED_NUM_PARAMETERS[name]


def test_adapter_parameter_counts_equal_those_of_peft():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES["qwen2.5-1.5b"]))
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert ModelSize.of(SHAPES["qwen2.5-1.5b"]).lora(16) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_moe_like"])
def test_all_experts_count(family):
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"vocab_size": 4, "num_experts_per_tok": 2}
    experts = {
        "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 5},
        "mixtral": {"num_local_experts": 4},
        "deepseek_moe_like": {"n_routed_experts": 4, "moe_intermediate_size": 5, "n_shared_experts": 1},
    }
    size = ModelSize.of(shape | experts[family])
    expected = {"qwen3_moe": (10, 20), "mixtral": (32, 64), "deepseek_moe_like": (15, 25)}
    assert (size.intermediate, size.stored_intermediate) == expected[family]


def test_a_model_with_an_image_encoder_has_the_size_of_its_decoder():
    shape = SHAPES["qwen2.5-1.5b"]
    assert ModelSize.of({"model_type": "qwen3_vl", "text_config": shape}).total == ModelSize.of(shape).total


def test_the_size_of_a_model_that_is_no_plain_decoder_is_unknown():
    assert ModelSize.if_known({"model_type": "rwkv", "hidden_size": 8}) is None


def test_a_family_that_cannot_share_prompts_needs_memory_for_every_copy():
    size = ModelSize.of(SHAPES["qwen2.5-1.5b"] | {"model_type": "qwen3_next"})
    assert not size.shares_prompts
    settings = replace(SETTINGS, prompt_tokens=100, response_tokens=20, mini_batch_size=1, group_size=4)
    separate = replace(settings, shares_prompts=size.shares_prompts)
    assert (settings.micro_batch_tokens, separate.micro_batch_tokens) == (180, 480)
    assert (settings.micro_batch_responses, separate.micro_batch_responses) == (80, 80)
    assert separate.keys_per_token == 1
