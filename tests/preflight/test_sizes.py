"""The computed numbers of parameters of models and adapters equal the real ones."""

import pytest
import torch
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
