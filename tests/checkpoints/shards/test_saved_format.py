"""The exported tensors are those that `save_pretrained` writes: the same names, shapes and values."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_files import write_checkpoint
from support.families import make_model
from support.moe_models import tiny_model
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.saved_format import model_tensors, saved_tensors
from rgtrain.checkpoints.shards.tensors import num_rows

# Families whose tiny models are large or need more settings.
_LARGE = {"emu3", "fuyu", "gemma3n_text", "gemma4_unified", "got_ocr2", "longcat_flash", "mllama", "deepseek_v4"}
CONVERTED = sorted(
    {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if get_checkpoint_conversion_mapping(name)} - _LARGE
)
# The two multimodal families have renamed parts and transposed experts.
FAMILIES = ["llama", "gpt2", "gpt_oss", "granitemoe", "qwen2_5_vl", "qwen3_vl_moe", *CONVERTED]


@dataclass(frozen=True)
class TensorInMemory:
    """A tensor in memory as a TensorSource. `num_read` counts rows."""

    name: str
    values: torch.Tensor
    num_read: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        self.num_read.append(stop - start)
        return self.values[start:stop].clone() if self.shape else self.values.clone()


def converted(model: Any, num_read: list[int] | None = None) -> dict[str, Any]:
    counter = [] if num_read is None else num_read
    untied = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}
    return saved_tensors({name: TensorInMemory(name, value, counter) for name, value in untied.items()}, model)


def row_by_row(tensor: Any) -> torch.Tensor:
    """Return the whole tensor, read in two blocks."""
    rows = num_rows(tensor)
    blocks = [tensor.rows(0, rows)] if rows < 2 else [tensor.rows(0, rows // 2), tensor.rows(rows // 2, rows)]
    return torch.cat(blocks) if tensor.shape else blocks[0]


def test_the_families_with_experts_are_among_the_converted_ones():
    known = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "phimoe", "glm4_moe"}
    assert known | {"ernie4_5_moe", "qwen3_next", "hunyuan_v1_moe", "jamba", "minimax_m2"} <= set(CONVERTED)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_converted_as_save_pretrained_converts_it(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    saved, ours = load_file(tmp_path / "model.safetensors"), converted(model)
    assert ours.keys() == saved.keys()
    for name, tensor in ours.items():
        assert tensor.shape == tuple(saved[name].shape), name
        assert torch.equal(row_by_row(tensor), saved[name]), name


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_exported_mixture_of_experts_is_the_saved_model(family, world_size, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "saved")
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=world_size)
    exported = load_file(export(actor, tmp_path / "exported", verify=True) / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], value) for name, value in saved.items())


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2_5_vl", "qwen3_vl_moe", "jamba"])
def test_saved_tensors_are_converted_back_to_the_models_state(family):
    model = make_model(family)
    state = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}
    saved = {name: TensorInMemory(name, row_by_row(tensor), []) for name, tensor in converted(model).items()}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    back = model_tensors(saved, shapes, model)
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        assert torch.equal(row_by_row(tensor), state[name]), name
        assert torch.equal(tensor.rows(0, 1), state[name][:1]), name


def test_a_saved_tensor_that_the_model_does_not_have_keeps_its_name():
    model = tiny_model("mixtral")
    saved = {name: TensorInMemory(name, row_by_row(tensor), []) for name, tensor in converted(model).items()}
    more, lost = "model.layers.0.mtp.weight", "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    del saved[lost]
    saved[more] = TensorInMemory(more, torch.zeros(2), [])
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    back = model_tensors(saved, shapes, model)
    assert more in back
    assert "model.layers.0.mlp.experts.down_proj" not in back and "model.layers.1.mlp.experts.down_proj" in back


def test_an_adapter_is_merged_into_a_saved_mixture_of_experts(tmp_path):
    model = tiny_model("qwen3_moe")
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=1)
    model.save_pretrained(actor / "huggingface")
    factors = {side: torch.randn(shape) for side, shape in (("A", (2, 128)), ("B", (64, 2)))}
    name = "model.layers.1.self_attn.v_proj"
    named = {f"base_model.model.{name}.lora_{side}.default.weight": value for side, value in factors.items()}
    torch.save(named, actor / "model_world_size_1_rank_0.pt")
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}))
    exported = load_file(export(actor, tmp_path / "exported") / "model.safetensors")
    before = load_file(actor / "huggingface" / "model.safetensors")
    assert exported.keys() == before.keys()
    merged = before[f"{name}.weight"] + 2 * factors["B"] @ factors["A"]
    assert torch.allclose(exported[f"{name}.weight"], merged, atol=1e-5)
    assert all(torch.equal(exported[other], before[other]) for other in before.keys() - {f"{name}.weight"})


def test_each_expert_is_read_once():
    model, num_read = tiny_model("qwen3_moe"), []
    for tensor in converted(model, num_read).values():
        tensor.rows(0, num_rows(tensor))
    assert sum(num_read) == sum(value.shape[0] for value in model.state_dict().values())
    # One expert at a time: of the tensors of experts, never more than one row is read.
    names = [name for name in model.state_dict() if ".experts." in name]
    assert num_read.count(1) == len(names) * model.config.num_experts
