"""Write sharded checkpoints in verl's format, of tiny models or any other model.

`write_checkpoint` shards with torch's own `fully_shard`. verl_checkpoints.py makes checkpoints with verl itself.
"""

import copy
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from rgtrain.checkpoints.shards.random_checkpoints import mesh_of_rank, rank_file

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"


def tiny_config(**config) -> LlamaConfig:
    """Return a Llama config whose dimensions (33, 24, 12, 5) split unevenly or leave one of four ranks empty."""
    sizes = {"vocab_size": 33, "hidden_size": 24, "intermediate_size": 5, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlamaConfig(**sizes | heads | config)


def tiny_model(
    *, seed: int = 0, dtype: torch.dtype = torch.float32, auto_class: type = AutoModelForCausalLM, **config
) -> PreTrainedModel:
    """Return a random model of `tiny_config`, by default with a language model head."""
    torch.manual_seed(seed)
    model = auto_class.from_config(tiny_config(**config), dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_checkpoint(
    step_folder: Path,
    model: PreTrainedModel,
    *,
    world_size: int,
    num_replicas: int = 1,
    even_dimensions: bool = False,
    device_type: str = "cpu",
) -> Path:
    """Write `model` as FSDP2 shards of `world_size` ranks to `step_folder`/actor, and return that folder.

    `num_replicas` > 1 makes a 2-D mesh (ddp x fsdp). `even_dimensions` shards along the first dimension that is
    divisible by the number of ranks, as verl does for some engines.
    """
    folder = _model_folder(step_folder / "actor", model, world_size=world_size)
    mesh_shape = (world_size,) if num_replicas == 1 else (num_replicas, world_size // num_replicas)
    for rank in range(world_size):
        with mesh_of_rank(rank, mesh_shape, device_type=device_type) as mesh:
            sharded = _fully_shard(copy.deepcopy(model).to(device_type), mesh, even_dimensions=even_dimensions)
            torch.save(sharded.state_dict(), rank_file(folder, world_size, rank))
    return folder


def write_plain(
    step_folder: Path,
    model: PreTrainedModel,
    *,
    world_size: int = 1,
    split_dim: int | None = None,
    more: dict | None = None,
) -> Path:
    """Write `model` as plain tensors to `step_folder`/actor, and return that folder.

    Every rank has the whole tensors, or its part of them along `split_dim`. `more` are additional tensors.
    """
    folder = _model_folder(step_folder / "actor", model, world_size=world_size)
    state = model.state_dict() | (more or {})
    for rank in range(world_size):
        parts = {name: _part(tensor, rank, world_size, split_dim) for name, tensor in state.items()}
        torch.save(parts, rank_file(folder, world_size, rank))
    return folder


def _part(tensor: torch.Tensor, rank: int, world_size: int, split_dim: int | None) -> torch.Tensor:
    if split_dim is None or tensor.dim() <= split_dim:
        return tensor
    return tensor.tensor_split(world_size, dim=split_dim)[rank].clone()


def write_tensor(
    folder: Path, tensor: torch.Tensor, *, mesh_shape: tuple[int, ...], placements: list[Placement]
) -> None:
    """Write one tensor to `folder`, named "weight", placed on a mesh of any shape."""
    world_size = torch.Size(mesh_shape).numel()
    for rank in range(world_size):
        with mesh_of_rank(rank, mesh_shape) as mesh:
            placed: DTensor = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
            torch.save({"weight": placed}, rank_file(folder, world_size, rank))


def _fully_shard(model: PreTrainedModel, mesh: DeviceMesh, *, even_dimensions: bool) -> PreTrainedModel:
    num_shards = mesh.size(-1)

    def placement(parameter: torch.nn.Parameter) -> Shard:
        even = (dim for dim, size in enumerate(parameter.shape) if size % num_shards == 0)
        return Shard(next(even, 0))

    options = {"mesh": mesh, "shard_placement_fn": placement if even_dimensions else None}
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def _model_folder(folder: Path, model: PreTrainedModel, *, world_size: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world_size}))
    model.config.save_pretrained(folder / "huggingface")
    if model.can_generate():
        model.generation_config.save_pretrained(folder / "huggingface")
    tiny_tokenizer().save_pretrained(folder / "huggingface")
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<user>", "<assistant>", *(str(number) for number in range(30))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=CHAT_TEMPLATE)


def assert_same_tensors(exported: dict, model) -> None:
    """Assert that an export has the tensors of `model`, bit for bit."""
    expected = model.state_dict()
    assert exported.keys() == expected.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


def file_names(folder: Path) -> list[str]:
    """Return the sorted names of the files in `folder`."""
    return sorted(path.name for path in folder.iterdir())
