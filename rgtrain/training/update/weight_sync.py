"""The actor's parameters for the rollout, gathered from all ranks in buckets and with adapters merged on the way.

One collective per parameter costs more than the transfer: a model of 1.5B parameters has 338 of them, and with eight
GPUs each takes milliseconds to start. Here, the ranks convert their shards to the dtype of the rollout, pack those of
many parameters into one buffer, and gather the buffer at once, while the rollout still copies the previous one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from verl.utils.model import convert_weight_keys

from rgtrain.checkpoints.checkpoint_names import checkpoint_tensors, converts_tensors, layer_of
from rgtrain.checkpoints.shards.lora import is_adapter_tensor, merged_rows, unwrapped_name
from rgtrain.training.rollout.channel import TRAINER

# The size of a bucket's whole parameters. At 128 MiB, starting a collective takes little of its time even with eight
# GPUs, and the buffers stay small: up to two buckets exist at a time, one of them both gathered and unpacked.
_BUCKET_BYTES = 128 * 2**20
# Before torch 2.13, it had another name.
_all_gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor


@dataclass(frozen=True)
class _Adapter:
    """The names of an adapter's factors, A (rank x inputs) and B (outputs x rank), and how to merge them."""

    down: str
    up: str
    scale: float
    transposed: bool


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight that the rollout may load, under its name in the model without PEFT's wrappers."""

    name: str
    tensor: Tensor
    adapter: _Adapter | None = None

    @property
    def num_rows(self) -> int:
        """The number of rows of the whole tensor, along its first dimension."""
        return self.tensor.shape[0] if self.tensor.dim() else 1

    @property
    def changes(self) -> bool:
        """Whether training changes it. Buffers may change too."""
        return self.adapter is not None or self.tensor.requires_grad or not isinstance(self.tensor, torch.nn.Parameter)


class ActorWeights:
    """The names and whole tensors of an actor's parameters, each as in a checkpoint of the model.

    All ranks must iterate together and in the same way, because they gather parameters from each other. The tensors of
    a single rank are the parameters themselves unless they have adapters, so they must not be changed.

    Args:
        model: The model, or PEFT's model with one adapter, sharded by FSDP2 or whole.
        device: The device of the tensors. Parameters on another device are moved one bucket at a time.
        frozen_version: A number that differs from the previous one if frozen parameters may have changed.
        bucket_bytes: The size of a bucket. A larger parameter gets its own bucket.

    Raises:
        NotImplementedError: The model has an adapter other than plain LoRA.
    """

    def __init__(
        self, model: Any, *, device: torch.device | int, frozen_version: int = 0, bucket_bytes: int = _BUCKET_BYTES
    ):
        # FSDP shards its parameters again before it returns them here.
        self._state = model.state_dict(keep_vars=True)
        self._device = device
        self.frozen_version = frozen_version
        self._bucket_bytes = bucket_bytes
        adapters = _plain_adapters(model)
        self._base = model.get_base_model() if hasattr(model, "peft_config") else model
        self._converts = converts_tensors(self._base)
        weights = {
            (unwrapped_name(name) if adapters else name): (tensor, adapters.get(name))
            for name, tensor in self._state.items()
            if not (adapters and (is_adapter_tensor(name) or ".original_module." in name))
        }
        named = convert_weight_keys(weights, self._base)
        self._weights = [_Weight(name, tensor, adapter) for name, (tensor, adapter) in named.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self.buckets():
            yield from bucket

    def buckets(
        self, *, dtypes: Mapping[str, torch.dtype] | None = None, changed_only: bool = False
    ) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield the weights bucket by bucket. The next bucket is gathered while the caller uses the current one.

        Args:
            dtypes: The dtypes to convert gathered and merged weights to, by their names in a checkpoint. Other weights
                of a model without converted tensors are left out. By default, all weights keep their dtypes, and
                merged ones are in float32 or better.
            changed_only: Whether to leave out frozen parameters without an adapter.
        """
        weights = self._selected(dtypes, changed_only=changed_only)
        wanted = self._wanted_dtypes(weights, dtypes or {})
        factors = self._gathered_factors(weights)
        num_done = 0
        gathering: Callable[[], list[tuple[str, Tensor]]] | None = None
        # The last, empty bucket only lets the one before it be taken.
        for bucket in [*self._split(weights, wanted), []]:
            following = self._start_gather(bucket, wanted, factors) if bucket else None
            if gathering is not None:
                whole = gathering()
                num_done += len(whole)
                yield self._converted(whole)
                del whole
                TRAINER.moved("weight", num_done, len(weights))
            gathering = following

    def _selected(self, dtypes: Mapping[str, torch.dtype] | None, *, changed_only: bool) -> list[_Weight]:
        if self._converts:
            # A layer is converted as a whole.
            changed = {layer_of(weight.name) for weight in self._weights if weight.changes}
            return [weight for weight in self._weights if not changed_only or layer_of(weight.name) in changed]
        return [
            weight
            for weight in self._weights
            if (dtypes is None or weight.name in dtypes) and (weight.changes or not changed_only)
        ]

    def _wanted_dtypes(self, weights: list[_Weight], dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
        """Return the dtype of each selected weight in its bucket."""
        names = {weight.name for weight in weights}
        # Converted tensors have other names than the weights of the layer that they are made of.
        converted: dict[str, set[torch.dtype]] = defaultdict(set)
        for name, dtype in dtypes.items():
            if name not in names:
                converted[layer_of(name)].add(dtype)
        wanted = {}
        for weight in weights:
            own = weight.tensor.dtype
            if weight.adapter is not None:
                own = torch.promote_types(own, torch.float32)
            of_layer = converted[layer_of(weight.name)] if self._converts else set()
            wanted[weight.name] = dtypes.get(weight.name) or (next(iter(of_layer)) if len(of_layer) == 1 else own)
        return wanted

    def _split(self, weights: list[_Weight], wanted: Mapping[str, torch.dtype]) -> list[list[_Weight]]:
        """Split the weights into buckets in their order, without splitting a layer that is converted."""
        if self._converts:
            units = [list(layer) for _, layer in groupby(weights, key=lambda weight: layer_of(weight.name))]
        else:
            units = [[weight] for weight in weights]
        buckets: list[list[_Weight]] = []
        free = 0
        for unit in units:
            num_bytes = sum(weight.tensor.numel() * wanted[weight.name].itemsize for weight in unit)
            if num_bytes > free or not buckets:
                buckets.append([])
                free = self._bucket_bytes
            buckets[-1] += unit
            free -= num_bytes
        return buckets

    def _converted(self, whole: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        with torch.no_grad():
            return list(checkpoint_tensors(self._base, whole)) if self._converts else whole

    def _gathered_factors(self, weights: Sequence[_Weight]) -> dict[str, Tensor]:
        """Return the whole factors of the weights' adapters, in float32 or better."""
        adapters = [weight.adapter for weight in weights if weight.adapter is not None]
        factors = [_Weight(name, self._state[name]) for adapter in adapters for name in (adapter.down, adapter.up)]
        dtypes = {factor.name: torch.promote_types(factor.tensor.dtype, torch.float32) for factor in factors}
        # Factors are small, so one bucket holds all of them.
        return {name: factor.to(dtypes[name]) for name, factor in self._start_gather(factors, dtypes, {})()}

    @torch.no_grad()
    def _start_gather(
        self, bucket: Sequence[_Weight], wanted: Mapping[str, torch.dtype], factors: Mapping[str, Tensor]
    ) -> Callable[[], list[tuple[str, Tensor]]]:
        """Start to gather a bucket, and return a function that waits for it and returns the whole weights."""
        whole: dict[str, Tensor] = {}
        # The shards by the ranks that hold them and by dtype, which nearly always are the same in a bucket.
        shards: dict[tuple[Any, torch.dtype], list[tuple[_Weight, Tensor]]] = defaultdict(list)
        for weight in bucket:
            dtype = wanted[weight.name]
            group, local = _shard(weight.tensor, self._device)
            rows = local.to(self._device, non_blocking=True)
            if weight.adapter is not None:
                rows = _merge(weight, weight.adapter, rows, group, factors).to(dtype)
            if group is None:
                whole[weight.name] = rows
            else:
                shards[group, dtype].append((weight, rows))
        gathers = [_Gather(members, dtype, group) for (group, dtype), members in shards.items()]

        @torch.no_grad()
        def finish() -> list[tuple[str, Tensor]]:
            for gather in gathers:
                whole.update(gather.wait())
            return [(weight.name, whole[weight.name]) for weight in bucket]

        return finish


class _Gather:
    """A collective that gathers the shards of several weights.

    Args:
        shards: The weights with this rank's rows of each.
        dtype: The dtype of the whole tensors.
        group: The ranks that hold the shards.
    """

    def __init__(self, shards: Sequence[tuple[_Weight, Tensor]], dtype: torch.dtype, group: Any):
        self._weights = [weight for weight, _ in shards]
        self._num_ranks = torch.distributed.get_world_size(group)
        # FSDP gives each rank as many rows as the first one, until none are left.
        self._num_rows = [math.ceil(weight.num_rows / self._num_ranks) for weight in self._weights]
        self._sizes = [
            rows * math.prod(weight.tensor.shape[1:])
            for weight, rows in zip(self._weights, self._num_rows, strict=True)
        ]
        packed = torch.empty(sum(self._sizes), dtype=dtype, device=shards[0][1].device)
        places, sources = [], []
        for (_, rows), place in zip(shards, torch.split(packed, self._sizes), strict=True):
            if rows.numel():
                places.append(place[: rows.numel()].view(rows.shape))
                sources.append(rows)
        if places:
            torch._foreach_copy_(places, sources)
        self._gathered = packed.new_empty(self._num_ranks * len(packed))
        self._work = _all_gather(self._gathered, packed, group=group, async_op=True)

    def wait(self) -> Iterator[tuple[str, Tensor]]:
        """Wait for the shards of other ranks, and yield the name and the whole tensor of each weight."""
        self._work.wait()
        unpacked = self._gathered
        if len(self._sizes) > 1:
            unpacked = torch.empty_like(self._gathered)
            torch.split_with_sizes_copy(
                self._gathered.view(self._num_ranks, -1),
                self._sizes,
                dim=1,
                out=[part.view(self._num_ranks, -1) for part in self._parts(unpacked)],
            )
        for weight, rows, part in zip(self._weights, self._num_rows, self._parts(unpacked), strict=True):
            padded = part.view(self._num_ranks * rows, *weight.tensor.shape[1:])
            yield weight.name, padded[: weight.num_rows]

    def _parts(self, buffer: Tensor) -> tuple[Tensor, ...]:
        return torch.split(buffer, [self._num_ranks * size for size in self._sizes])


def _shard(tensor: Tensor, device: torch.device | int) -> tuple[Any, Tensor]:
    """Return the ranks that hold the tensor's shards, None if this rank has all of it, and this rank's shard."""
    if not isinstance(tensor, DTensor):
        return None, tensor.detach()
    mesh = tensor.device_mesh
    # Along other dimensions of the mesh, as with hybrid sharding, ranks hold copies.
    split = [dim for dim, place in enumerate(tensor.placements) if not place.is_replicate() and mesh.size(dim) > 1]
    if not split:
        return None, tensor.to_local()
    [first, *others] = split
    place = tensor.placements[first]
    # In some versions of torch, a strided shard equals one that is not.
    if others or type(place) is not Shard or place.dim != 0:
        whole: Any = tensor.to(device)
        return None, whole.full_tensor()
    return mesh.get_group(first), tensor.to_local()


def _merge(weight: _Weight, adapter: _Adapter, rows: Tensor, group: Any, factors: Mapping[str, Tensor]) -> Tensor:
    """Return this rank's rows of a weight with its adapter merged, in float32 or better."""
    start = 0
    if group is not None:
        rows_per_rank = math.ceil(weight.num_rows / torch.distributed.get_world_size(group))
        start = min(torch.distributed.get_rank(group) * rows_per_rank, weight.num_rows)
    return merged_rows(
        rows,
        factors[adapter.down],
        factors[adapter.up],
        scale=adapter.scale,
        transposed=adapter.transposed,
        start=start,
        num_rows=weight.num_rows,
    )


def _plain_adapters(model: Any) -> dict[str, _Adapter]:
    """Return the adapters of PEFT's layers by the full names of the adapted weights, none without PEFT."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer, ParamWrapper

    adapters = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        [adapter] = layer.active_adapters
        if layer.lora_variant or layer.lora_bias.get(adapter):
            raise NotImplementedError(f"the adapter of {name} is not plain LoRA; use LoRA without variants and bias")
        is_embedding = adapter in layer.lora_embedding_A
        side = "lora_embedding_{}.{}" if is_embedding else "lora_{}.{}.weight"
        weight, inner, parameter, transposed = name, layer, "weight", is_embedding or layer.fan_in_fan_out
        if isinstance(layer, ParamWrapper):
            parameter = layer.parameter_name
            transposed = layer.get_param().dim() == 3 and not layer._did_swap_in_out_features
        while hasattr(inner, "base_layer"):
            weight, inner = f"{weight}.base_layer", inner.base_layer
        down, up = (f"{name}.{side.format(factor, adapter)}" for factor in "AB")
        adapters[f"{weight}.{parameter}"] = _Adapter(down, up, layer.scaling[adapter], transposed)
    return adapters
