"""vLLM gets a model's weights under the names and in the shapes of its saved checkpoints."""

import pytest
import torch
from safetensors.torch import load_file
from support.moe_models import MOE_SETTINGS, tiny_model
from transformers import PreTrainedModel

from rgtrain.checkpoints.checkpoint_names import checkpoint_tensors


def converted(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(checkpoint_tensors(model, model.state_dict().items()))


@pytest.mark.parametrize("family", ["llama", *MOE_SETTINGS])
def test_tensors_are_those_of_a_saved_checkpoint(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    given = converted(model)
    # A file holds tied weights once.
    tied = given.keys() - saved.keys()
    assert tied <= set(model.all_tied_weights_keys)
    assert saved.keys() <= given.keys()
    for name, tensor in saved.items():
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_loaded_model_is_converted_like_a_new_one(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert converted(loaded).keys() == converted(model).keys()


def test_each_expert_has_its_own_weights():
    model = tiny_model("qwen3_moe")
    fused = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    gate, up = fused[2].chunk(2)
    given = converted(model)
    assert torch.equal(given["model.layers.1.mlp.experts.2.gate_proj.weight"], gate)
    assert torch.equal(given["model.layers.1.mlp.experts.2.up_proj.weight"], up)


def test_one_layer_is_converted_at_a_time():
    model = tiny_model("qwen3_moe")
    taken: list[str] = []

    def named():
        for name, tensor in model.state_dict().items():
            taken.append(name)
            yield name, tensor

    for name, _ in checkpoint_tensors(model, named()):
        if ".layers.0." in name:
            assert not any(".layers.1." in other for other in taken[:-1])


def test_a_model_without_conversions_is_passed_on_unchanged():
    model = tiny_model("llama")
    given = converted(model)
    assert all(
        given[name] is tensor or given[name].data_ptr() == tensor.data_ptr()
        for name, tensor in model.state_dict().items()
    )
