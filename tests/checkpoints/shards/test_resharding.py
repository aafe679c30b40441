"""Each rank takes its shards of a model and an optimizer from files that any number of ranks saved."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from rgtrain.checkpoints.shards import tensors as blocks
from rgtrain.checkpoints.shards.checkpoint import complete_checkpoint, files_beside
from rgtrain.checkpoints.shards.optimizer_shards import OptimizerShards
from rgtrain.checkpoints.shards.random_checkpoints import mesh_of_rank, rank_file
from rgtrain.checkpoints.shards.resharding import is_divided_alike, load_model_shards, load_optimizer_shards
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.errors import ConfigError

# Rows that two and three ranks can't divide evenly, and fewer rows than ranks.
SHAPES = {"weight": (7, 5), "head": (1, 4), "norm": (5,), "experts": (3, 4, 2)}

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def adamw(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.1, fused=True)


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def values(*, seed: int, num: int = len(SHAPES)) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(shape) for name, shape in list(SHAPES.items())[:num]}


def trained(
    tensors: Mapping[str, Tensor], make: Make, mesh: DeviceMesh | None
) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
    """Return the parameters and their optimizer after a step, on this rank of `mesh` or whole."""
    gradients = values(seed=1, num=len(tensors))
    # The last one is frozen.
    frozen = list(tensors)[-1]

    def placed(tensor: Tensor) -> Tensor:
        if mesh is None:
            return tensor.clone()
        return distribute_tensor(tensor, mesh, [*[Replicate()] * (mesh.ndim - 1), Shard(0)], src_data_rank=None)

    params = {
        name: torch.nn.Parameter(placed(tensor), requires_grad=name != frozen) for name, tensor in tensors.items()
    }
    optimizer = make(list(params.values()))
    for name, param in params.items():
        if name != frozen:
            param.grad = placed(gradients[name])
    optimizer.step()
    return {name: param.detach() for name, param in params.items()}, optimizer


def save(folder: Path, mesh_shape: tuple[int, ...], make: Make = adamw, *, num: int = len(SHAPES)) -> tuple[Path, ...]:
    """Save a model and its optimizer as all ranks of a mesh do, and return the files of the model."""
    num_ranks = torch.Size(mesh_shape).numel()
    for rank in range(num_ranks):
        with mesh_of_rank(rank, mesh_shape) as mesh:
            params, optimizer = trained(values(seed=0, num=num), make, mesh)
            path = rank_file(folder, num_ranks, rank)
            torch.save(params, path)
            torch.save(optimizer.state_dict(), path.with_name(path.name.replace("model", "optim")))
    return complete_checkpoint(folder).rank_files


def load(
    files: tuple[Path, ...], mesh: DeviceMesh, make: Make = adamw
) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
    """Load the files into a model of zeros on this rank of `mesh`."""
    params, optimizer = trained({name: torch.zeros(shape) for name, shape in SHAPES.items()}, make, mesh)
    load_model_shards(params, RankFiles(files))
    load_optimizer_shards(optimizer, OptimizerShards(files_beside(files, "optim"), is_verified=False))
    return params, optimizer


def assert_is_shard(found: object, whole: object, mesh: DeviceMesh) -> None:
    if not isinstance(found, DTensor):
        assert torch.equal(found, whole) if isinstance(found, Tensor) else found == whole
        return
    chunks = [*whole.chunk(mesh.size(-1)), *[whole[:0]] * mesh.size(-1)]
    assert found.shape == whole.shape
    assert torch.equal(found.to_local(), chunks[mesh.get_local_rank(mesh.ndim - 1)])


# Meshes of two dimensions have copies along the first one.
@pytest.mark.parametrize(
    ("before", "after", "make"),
    [
        ((1,), (2,), adamw),
        ((2,), (1,), adamw),
        ((1,), (5,), adamw),
        ((3,), (2,), adamw),
        ((3,), (2, 2), adamw),
        ((2, 2), (3,), adamw),
        ((2, 1), (2,), adamw),
        ((2,), (3,), sgd),
    ],
)
def test_every_rank_gets_its_shards_bit_for_bit(tmp_path, monkeypatch, before, after, make):
    # Two rows of a weight are a block.
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 40)
    files = save(tmp_path, before, make)
    wholes, whole_optimizer = trained(values(seed=0), make, None)
    expected = whole_optimizer.state_dict()
    for rank in range(torch.Size(after).numel()):
        with mesh_of_rank(rank, after) as mesh:
            params, optimizer = load(files, mesh, make)
            for name, whole in wholes.items():
                assert_is_shard(params[name], whole, mesh)
            loaded = optimizer.state_dict()
            assert loaded["param_groups"] == expected["param_groups"]
            assert {number: entries.keys() for number, entries in loaded["state"].items()} == {
                number: entries.keys() for number, entries in expected["state"].items()
            }
            for number, entries in expected["state"].items():
                for key, whole in entries.items():
                    assert_is_shard(loaded["state"][number][key], whole, mesh)


@pytest.mark.parametrize(("before", "is_alike"), [((2, 2), True), ((4,), False), ((4, 1), False), ((1, 4), False)])
def test_another_mesh_of_as_many_ranks_is_noticed(tmp_path, before, is_alike):
    files = save(tmp_path, before, sgd, num=1)
    with mesh_of_rank(1, (2, 2)) as mesh:
        params, _ = trained(values(seed=0, num=1), sgd, mesh)
        assert is_divided_alike(params, files[1]) == is_alike


def test_a_state_of_another_shape_than_its_parameter_is_divided_like_before(tmp_path):
    """Adafactor keeps the means of rows, which are divided, and those of columns, of which each rank has a copy."""
    files = save(tmp_path, (2,), num=2)
    rows, columns = torch.randn(7, 1), torch.randn(1, 5)
    for rank in range(2):
        with mesh_of_rank(rank, (2,)) as mesh:
            path = tmp_path / f"optim_world_size_2_rank_{rank}.pt"
            state = torch.load(path, weights_only=True)
            entries = {"rows": (rows, Shard(0)), "columns": (columns, Replicate())}
            for key, (whole, placement) in entries.items():
                state["state"][0][key] = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
            torch.save(state, path)
    with mesh_of_rank(2, (3,)) as mesh:
        _, optimizer = trained(values(seed=0, num=2), adamw, mesh)
        load_optimizer_shards(optimizer, OptimizerShards(files_beside(files, "optim"), is_verified=False))
        loaded = optimizer.state_dict()["state"][0]
        assert torch.equal(loaded["rows"].to_local(), rows[6:])
        assert torch.equal(loaded["columns"].to_local(), columns)


def test_a_file_without_an_optimizer_is_refused_by_name(tmp_path):
    files = save(tmp_path, (2,), num=2)
    path = tmp_path / "optim_world_size_2_rank_1.pt"
    torch.save({"state": [], "param_groups": []}, path)
    with pytest.raises(
        ConfigError, match=r"optim_world_size_2_rank_1.pt' does not hold the state of a torch optimizer"
    ):
        OptimizerShards(files_beside(files, "optim"), is_verified=False)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 truncated"])
def test_a_missing_or_truncated_optimizer_file_is_refused_by_name(tmp_path, content):
    files = save(tmp_path, (2,), num=2)
    path = tmp_path / "optim_world_size_2_rank_1.pt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"has no complete optim_world_size_2_rank_1.pt\. Copy all files"):
        files_beside(files, "optim")


def test_optimizer_files_of_different_steps_are_refused(tmp_path):
    files = save(tmp_path, (2,), num=2)
    path = tmp_path / "optim_world_size_2_rank_1.pt"
    state = torch.load(path, weights_only=True)
    state["param_groups"][0]["lr"] = 0.2
    torch.save(state, path)
    with pytest.raises(ConfigError, match="rank_1.pt have different options or steps of the optimizer"):
        OptimizerShards(files_beside(files, "optim"), is_verified=False)
    state["param_groups"][0]["lr"] = 0.1
    state["state"][0]["step"] += 1
    torch.save(state, path)
    with mesh_of_rank(0, (1,)) as mesh:
        _, optimizer = trained(values(seed=0, num=2), adamw, mesh)
        with pytest.raises(ConfigError, match=r"different copies of tensor '0\.step'"):
            load_optimizer_shards(optimizer, OptimizerShards(files_beside(files, "optim"), is_verified=False))


def test_damaged_data_is_refused_if_the_files_were_not_compared_with_a_manifest(tmp_path):
    files = save(tmp_path, (2,), sgd, num=1)
    content = bytearray(files[1].read_bytes())
    row = torch.load(files[1], weights_only=True)["weight"].to_local()[0].numpy().tobytes()
    content[content.index(row)] ^= 1
    files[1].write_bytes(content)
    with mesh_of_rank(0, (1,)) as mesh:
        params, _ = trained(values(seed=0, num=1), sgd, mesh)
        with pytest.raises(ConfigError, match=r"rank_1.pt' is damaged: the data of tensor 'weight' doesn't match"):
            load_model_shards(params, RankFiles(files))
        load_model_shards(params, RankFiles(files, is_verified=True))


def test_another_model_is_refused_by_its_first_different_tensor(tmp_path):
    files = save(tmp_path, (2,), num=2)
    with mesh_of_rank(0, (1,)) as mesh:
        params, optimizer = trained(values(seed=0), adamw, mesh)
        with pytest.raises(ConfigError, match="only one of both has the tensor 'experts'"):
            load_model_shards(params, RankFiles(files))
        load_model_shards(params, RankFiles(files), may_lack=True)
        with pytest.raises(ConfigError, match="holds the state of another optimizer or model"):
            load_optimizer_shards(optimizer, OptimizerShards(files_beside(files, "optim"), is_verified=False))
        params["head"] = torch.zeros(2, 4)
        with pytest.raises(ConfigError, match=r"'head' in .* has shape \[1, 4\], but this run's model has \[2, 4\]"):
            load_model_shards(params, RankFiles(files), may_lack=True)
