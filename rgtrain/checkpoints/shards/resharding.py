"""Load a rank's shards of a model and its optimizer from the files of any number of ranks.

The files are memory-mapped and read in blocks of a few megabytes. A rank therefore needs no more memory than its own
shards and one block.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rgtrain.checkpoints.shards.optimizer_shards import OptimizerShards, StoredState
from rgtrain.checkpoints.shards.shard_merge import RankFiles, block_at
from rgtrain.checkpoints.shards.tensors import TensorSource, row_ranges
from rgtrain.checkpoints.shards.unpickling import load_structure
from rgtrain.errors import ConfigError


def is_divided_alike(state: Mapping[str, Tensor], rank_file: Path) -> bool:
    """Return whether the shards of `rank_file` have the placements and shapes of those in a model's `state`.

    Raises:
        ConfigError: The file is damaged.
    """
    saved = load_structure(rank_file)
    return all(_division(value) == _division(state[name]) for name, value in saved.items() if name in state)


def _division(tensor: Tensor) -> tuple[Any, ...]:
    if isinstance(tensor, DTensor):
        return tuple(tensor.placements), tuple(tensor._local_tensor.shape)
    return None, tuple(tensor.shape)


@torch.no_grad()
def load_model_shards(state: Mapping[str, Tensor], stored: RankFiles, *, may_lack: bool = False) -> None:
    """Copy this rank's shards of a stored model into the tensors of `state`.

    Args:
        state: The model's state by name, with DTensors for parameters that FSDP2 divides.
        stored: The files of all ranks that saved the model.
        may_lack: Whether tensors of the model may be missing in the files, such as those of the base of an adapter.

    Raises:
        ConfigError: The files hold another model, or they are damaged.
    """
    folder = str(stored.files[0].path.parent)
    lacking = [] if may_lack else sorted(state.keys() - set(stored.names))
    if different := [*lacking, *(name for name in stored.names if name not in state)]:
        raise ConfigError(
            f"{folder!r} holds another model than this run's, because only one of both has the tensor "
            f"{different[0]!r}: resume from a checkpoint of this model"
        )
    for name in stored.names:
        shape = tuple(state[name].shape)
        whole = stored.merge(name, expected=shape)
        if whole.shape != shape:
            raise ConfigError(
                f"tensor {name!r} in {folder!r} has shape {list(whole.shape)}, but this run's model has {list(shape)}: "
                "resume from a checkpoint of this model"
            )
        _copy_shard(name, whole, state[name])


@torch.no_grad()
def load_optimizer_shards(optimizer: torch.optim.Optimizer, stored: OptimizerShards) -> None:
    """Replace the state and options of an optimizer by this rank's shards of a stored one.

    Args:
        optimizer: The optimizer of a model that FSDP2 divides among ranks.
        stored: The state that all ranks saved.

    Raises:
        ConfigError: The state belongs to other parameters, or it is damaged.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for tensor in stored.tensors():
        if tensor.number < len(params):
            state[tensor.number][tensor.key] = _shard_of(tensor, params[tensor.number])
    for (number, key), value in stored.others.items():
        state[number][key] = value
    try:
        optimizer.load_state_dict({"state": dict(state), "param_groups": stored.param_groups})
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{str(stored.path)!r} holds the state of another optimizer or model ({error}): resume from a checkpoint "
            "of this run"
        ) from error


def _shard_of(stored: StoredState, param: Tensor) -> Tensor:
    """Return this rank's shard of a stored tensor, on the device of its parameter."""
    name, whole = f"{stored.key} of parameter {stored.number}", stored.whole
    is_number = stored.placements is None and whole.shape != param.shape
    if is_number or not isinstance(param, DTensor):
        # Each rank has a copy, such as one of the number of steps.
        copy = torch.empty(whole.shape, dtype=whole.dtype, device=param.device)
        _copy_shard(name, whole, copy)
        return copy
    shard = torch.empty_like(param, dtype=whole.dtype) if whole.shape == param.shape else _smaller(stored, param)
    _copy_shard(name, whole, shard)
    return shard


def _smaller(stored: StoredState, param: DTensor) -> DTensor:
    """Return an empty tensor for a state of another shape than its parameter, such as Adafactor's rows and columns."""
    mesh, meta = param.device_mesh, torch.empty(stored.whole.shape, device="meta")
    # Only the last dimension of FSDP's mesh divides tensors. Along a first one, ranks have copies.
    placements = (*param.placements[:-1], *(stored.placements or ())[-1:])
    coordinate = tuple(mesh.get_coordinate() or ())
    _, size = block_at(stored.key, meta, placements, tuple(mesh.shape), coordinate)
    local = torch.empty(size, dtype=stored.whole.dtype)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=meta.shape, stride=meta.stride())


def _copy_shard(name: str, whole: TensorSource, target: Tensor) -> None:
    """Copy this rank's shard of a stored tensor into `target`."""
    local, offset = target, (0,) * target.dim()
    if isinstance(target, DTensor):
        local, mesh = target.to_local(), target.device_mesh
        coordinate = tuple(mesh.get_coordinate() or ())
        offset, _ = block_at(name, target, tuple(target.placements), tuple(mesh.shape), coordinate)
    if not local.dim():
        local.copy_(whole.rows(0, 1))
        return
    for start, stop in row_ranges(whole, offset[0], offset[0] + local.shape[0]):
        rows = whole.rows(start, stop)
        for dim in range(1, local.dim()):
            rows = rows.narrow(dim, offset[dim], local.shape[dim])
        local[start - offset[0] : stop - offset[0]].copy_(rows)
