"""Sharded checkpoints as verl writes them, for tiny models or for any other model.

`write_checkpoint` shards with torch's own `fully_shard`, all ranks in turn in one process, on a process group that
doesn't communicate (sharding needs none). `write_with_verl` runs real processes and verl's own checkpoint manager.
"""

import copy
import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"


def tiny_model(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config) -> PreTrainedModel:
    """A random Llama whose dimensions (33, 24, 12, 5) split unevenly, or leave a rank of four with nothing."""
    sizes = {"vocab_size": 33, "hidden_size": 24, "intermediate_size": 5, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes | heads | config), dtype=dtype)
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
    """Write `model` under `step_folder`/actor as FSDP2 shards it over `world_size` ranks; returns the actor folder.

    `num_replicas` > 1 makes a 2-D mesh (ddp x fsdp). `even_dimensions` shards along the first dimension that the ranks
    divide, as verl does for some engines.
    """
    folder = _model_folder(step_folder / "actor", model, world_size=world_size)
    for rank in range(world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        mesh = _mesh(device_type, world_size, num_replicas)
        sharded = _fully_shard(copy.deepcopy(model).to(device_type), mesh, even_dimensions=even_dimensions)
        torch.save(sharded.state_dict(), rank_file(folder, world_size, rank))
        _forget_process_group()
    return folder


def write_unsharded(step_folder: Path, model: PreTrainedModel, *, world_size: int = 1) -> Path:
    """Write `model` as plain tensors, the whole of it for each rank; returns the actor folder."""
    folder = _model_folder(step_folder / "actor", model, world_size=world_size)
    for rank in range(world_size):
        torch.save(model.state_dict(), rank_file(folder, world_size, rank))
    return folder


def write_tensor(
    folder: Path, tensor: torch.Tensor, *, mesh_shape: tuple[int, ...], placements: list[Placement]
) -> None:
    """Write one tensor to `folder`, named "weight", placed on a mesh of any shape."""
    world_size = torch.Size(mesh_shape).numel()
    for rank in range(world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        mesh = init_device_mesh("cpu", mesh_shape)
        placed: DTensor = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
        torch.save({"weight": placed}, rank_file(folder, world_size, rank))
        _forget_process_group()


def rank_file(folder: Path, world_size: int, rank: int) -> Path:
    """Where verl saves the model's part of `rank`."""
    return folder / f"model_world_size_{world_size}_rank_{rank}.pt"


def write_with_verl(step_folder: Path, model: PreTrainedModel, *, world_size: int) -> Path:
    """Write `model` with verl's FSDP2 wrapping and checkpoint manager, in `world_size` processes joined by gloo."""
    source = step_folder.parent / "source"
    model.save_pretrained(source)
    _tokenizer().save_pretrained(source)
    context = torch.multiprocessing.get_context("forkserver")
    # Imported once in the server, so that each rank starts with them.
    context.set_forkserver_preload(["verl.utils.checkpoint.fsdp_checkpoint_manager"])
    torch.multiprocessing.start_processes(
        _verl_rank, (world_size, source, step_folder / "actor"), nprocs=world_size, start_method="forkserver"
    )
    return step_folder / "actor"


def _verl_rank(rank: int, world_size: int, source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
    from verl.utils.fsdp_utils import apply_fsdp2

    store = f"file://{source / 'store'}"
    dist.init_process_group("cpu:gloo", init_method=store, rank=rank, world_size=world_size)
    model = AutoModelForCausalLM.from_pretrained(source)
    apply_fsdp2(model, {"mesh": _mesh("cpu", world_size, 1)}, {})
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    tokenizer = AutoTokenizer.from_pretrained(source)
    FSDPCheckpointManager(model, optimizer, scheduler, tokenizer).save_checkpoint(str(folder), global_step=1)
    dist.destroy_process_group()


def _mesh(device_type: str, world_size: int, num_replicas: int) -> DeviceMesh:
    if num_replicas == 1:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("fsdp",))
    shape = (num_replicas, world_size // num_replicas)
    return init_device_mesh(device_type, shape, mesh_dim_names=("ddp", "fsdp"))


def _fully_shard(model: PreTrainedModel, mesh: DeviceMesh, *, even_dimensions: bool) -> PreTrainedModel:
    num_shards = mesh.size(-1)

    def placement(parameter: torch.nn.Parameter) -> Shard:
        even = (dim for dim, size in enumerate(parameter.shape) if size % num_shards == 0)
        return Shard(next(even, 0))

    options = {"mesh": mesh, "shard_placement_fn": placement if even_dimensions else None}
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def _forget_process_group() -> None:
    dist.destroy_process_group()
    # torch caches results by mesh, and the next rank's equal mesh would get this rank's coordinate.
    _clear_sharding_prop_cache()


def _model_folder(folder: Path, model: PreTrainedModel, *, world_size: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world_size}))
    model.config.save_pretrained(folder / "huggingface")
    model.generation_config.save_pretrained(folder / "huggingface")
    _tokenizer().save_pretrained(folder / "huggingface")
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<user>", "<assistant>", *(str(number) for number in range(30))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=CHAT_TEMPLATE)
