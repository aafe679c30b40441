"""Compare the gathered weights of small sharded models with a plain way to gather them, in ranks over gloo."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed
from peft import LoraConfig, get_peft_model
from support.vllm_stand_in import VllmModel, llama_actor, replacing
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from rgtrain.checkpoints.adapter_config import read_adapter_config
from rgtrain.checkpoints.checkpoint_names import checkpoint_tensors
from rgtrain.checkpoints.shards.lora import build_adapter, is_adapter_tensor, unwrapped_name
from rgtrain.checkpoints.shards.tensors import TensorSource, read_all, same_bits
from rgtrain.training.rollout.weight_loading import WeightLoader
from rgtrain.training.update import weight_sync
from rgtrain.training.update.weight_sync import ActorWeights
from rgtrain.upstream.adapter_settings import adapter_settings

# Odd sizes give the ranks shards of different sizes.
_SIZES: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 24,
    "intermediate_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
# The gate of the shared expert has one row, so the second rank has none of it.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied llama": {"tie_word_embeddings": True},
    "qwen2_moe": {"num_experts": 3, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 7},
}


@dataclass(frozen=True)
class _Whole:
    """A tensor in memory for the exporter."""

    name: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop].clone()


def gathered_as_one_by_one(
    family: str, *, bucket_bytes: int, dtype: torch.dtype | None = None, mesh_shape: tuple[int, ...] = (2,)
) -> dict[str, Any]:
    """Gather the weights of a model in buckets, and one parameter at a time.

    Args:
        family: One of the families above.
        bucket_bytes: The size of a bucket.
        dtype: The dtype of the rollout, None to keep that of the model.
        mesh_shape: The shape of FSDP's mesh: copies and shards, or only shards.

    Returns:
        differing: The names that only one way yields, or whose tensors differ.
        num_weights, num_buckets, num_gathers: The numbers of weights, buckets and collectives.
    """
    model = _sharded(_small_model(family), mesh_shape)
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()
    }
    with torch.no_grad():
        expected = {name: value.to(dtype or value.dtype) for name, value in checkpoint_tensors(model, state.items())}
    weights = ActorWeights(model, device="cpu", bucket_bytes=bucket_bytes)
    dtypes = dict.fromkeys(expected, dtype) if dtype else None
    buckets, num_gathers = _counting_gathers(lambda: list(weights.buckets(dtypes=dtypes)))
    found = {name: value.to(dtype or value.dtype) for bucket in buckets for name, value in bucket}
    return {
        "differing": _differing(expected, found),
        "num_weights": len(state),
        "num_buckets": len(buckets),
        "num_gathers": num_gathers,
    }


def merged_as_exported(*, base_dtype: torch.dtype, mesh_shape: tuple[int, ...]) -> dict[str, Any]:
    """Merge adapters of several ranks and scales into a sharded model, and into the whole model as the exporter does.

    Returns:
        names: The names that only one way yields.
        largest: The largest difference of a weight, relative to the largest value of the weight.
        changed: The names of weights that are sent again.
        num_gathers: The number of collectives with all weights in one bucket.
        same_base: Whether the model's tensors have the same bits as before.
    """
    base = _small_model("llama").to(base_dtype)
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"v_proj": 7},
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter_tensor(name):
                parameter.normal_()
    expected = _exported(model)
    _sharded(model, mesh_shape)
    before = {name: value.to_local().clone() for name, value in model.state_dict().items()}
    weights = ActorWeights(model, device="cpu")
    dtypes = dict.fromkeys(expected, base_dtype)
    buckets, num_gathers = _counting_gathers(lambda: list(weights.buckets(dtypes=dtypes)))
    found = {name: value for bucket in buckets for name, value in bucket}
    after = {name: value.to_local() for name, value in model.state_dict().items()}
    return {
        "names": sorted(expected.keys() ^ found.keys()),
        "largest": max(
            ((found[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items()
        ),
        "changed": sorted(name for bucket in weights.buckets(dtypes=dtypes, changed_only=True) for name, _ in bucket),
        "num_gathers": num_gathers,
        "same_base": not _differing(before, after),
    }


def loaded_by_copies(*, moves_on_second_rank: bool) -> dict[str, Any]:
    """Load the weights of a sharded model three times into vLLM's part of a tensor-parallel group of two.

    Args:
        moves_on_second_rank: Whether vLLM puts a parameter into other memory after a load, on the second rank only.

    Returns:
        differing: The names of parameters that differ from those that a loader gives a new model.
        num_loads: How often vLLM's loader was used.
    """
    _join_group()
    rank = torch.distributed.get_rank()
    model = VllmModel(rank=rank)
    process = replacing(model) if moves_on_second_rank and rank == 1 else lambda: None
    loader = WeightLoader(model, process)
    for seed in range(3):
        whole = llama_actor(seed=seed)
        expected = VllmModel(rank=rank)
        expected.load_weights(whole.state_dict().items())
        loader.load(ActorWeights(_sharded(whole, (2,)), device="cpu", bucket_bytes=500))
    return {"differing": _differing(expected.values(), model.values()), "num_loads": model.num_loads}


def _exported(model: Any) -> dict[str, Tensor]:
    """Return the merged weights of a whole model with an adapter."""
    settings = read_adapter_config(adapter_settings(None, model) or {}, where="memory")
    state = model.state_dict()
    factors = [_Whole(name, value) for name, value in state.items() if is_adapter_tensor(name)]
    base: dict[str, TensorSource] = {
        unwrapped_name(name): _Whole(unwrapped_name(name), value)
        for name, value in state.items()
        if not is_adapter_tensor(name)
    }
    adapter = build_adapter(factors, settings, shapes={name: one.shape for name, one in base.items()})
    return {name: read_all(one) for name, one in adapter.merge_into(base).items()}


def _small_model(family: str) -> Any:
    torch.manual_seed(0)
    name = family.removeprefix("tied ")
    config = AutoConfig.for_model(name, **{"tie_word_embeddings": False, **_SIZES, **_FAMILIES[family]})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _sharded(model: Any, mesh_shape: tuple[int, ...]) -> Any:
    _join_group()
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("ddp", "fsdp")[-len(mesh_shape) :])
    layers = (model.get_base_model() if hasattr(model, "peft_config") else model).model.layers
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
    return model


def _join_group() -> None:
    if not torch.distributed.is_initialized():
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        address = os.environ["DIST_INIT_METHOD"]
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)


def _counting_gathers(function: Callable[[], Any]) -> tuple[Any, int]:
    with mock.patch.object(weight_sync, "_all_gather", side_effect=weight_sync._all_gather) as gather:
        result = function()
    return result, gather.call_count


def _differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    common = one.keys() & other.keys()
    different = [
        name
        for name in common
        if one[name].shape != other[name].shape
        or one[name].dtype != other[name].dtype
        or not same_bits(one[name], other[name])
    ]
    return sorted({*different, *(one.keys() ^ other.keys())})
