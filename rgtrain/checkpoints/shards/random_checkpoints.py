"""Write sharded checkpoints of random models in the form that verl uses with FSDP2, for tests and benchmarks.

One process writes all ranks in turn and holds only one rank's shard in memory. Its fake process group never
communicates.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, PretrainedConfig


def write_random_checkpoint(
    step_folder: Path, config: PretrainedConfig, *, world_size: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a random language model without a tokenizer to `step_folder`/actor, and return that folder."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    folder = step_folder / "actor"
    folder.mkdir(parents=True)
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world_size}))
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder / "huggingface")
    torch.manual_seed(seed)
    for rank in range(world_size):
        with mesh_of_rank(rank, (world_size,)) as mesh:
            state = {name: _random_shard(shape, mesh, dtype) for name, shape in shapes.items()}
            # Tied tensors share memory, so torch saves them once.
            state |= {alias: state[source] for alias, source in model.all_tied_weights_keys.items() if alias in state}
            torch.save(state, rank_file(folder, world_size, rank))
    return folder


def rank_file(folder: Path, world_size: int, rank: int) -> Path:
    """Return the path to which verl saves the model shard of `rank`."""
    return folder / f"model_world_size_{world_size}_rank_{rank}.pt"


@contextmanager
def mesh_of_rank(rank: int, mesh_shape: tuple[int, ...], *, device_type: str = "cpu") -> Iterator[DeviceMesh]:
    """Yield the device mesh of `rank`, with verl's dimension names: fsdp, or ddp and fsdp."""
    world_size = torch.Size(mesh_shape).numel()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield init_device_mesh(device_type, mesh_shape, mesh_dim_names=("ddp", "fsdp")[-len(mesh_shape) :])
    finally:
        dist.destroy_process_group()
        # torch caches results by mesh. The next rank's mesh compares equal and would get this rank's coordinate.
        _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]  # torch has no annotation


def _random_shard(shape: torch.Size, mesh: DeviceMesh, dtype: torch.dtype) -> Tensor:
    # As in torch.chunk, the last ranks may get fewer rows, or none.
    rows = -(-shape[0] // mesh.size())
    num_rows = max(0, min(rows, shape[0] - rows * mesh.get_local_rank()))
    local = torch.empty((num_rows, *shape[1:]), dtype=dtype).uniform_(-0.05, 0.05)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
