"""Copy new weights straight into vLLM's parameters, to the same places as vLLM's own loader.

The loader looks up each name, finds the part of a fused parameter that it belongs to, and copies one tensor after
another. That takes Python longer than a GPU needs to copy a model. The first load is therefore recorded. Later loads
repeat its copies, if that was shown to give the same bits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from verl.utils.device import get_device_id

from rgtrain.checkpoints.shards.tensors import same_bits
from rgtrain.training.lifecycle.console import announce


class WeightSource(Protocol):
    """The actor's weights, as `rgtrain.training.update.weight_sync.ActorWeights` gives them."""

    @property
    def frozen_version(self) -> int:
        """A number that differs from the previous one if frozen parameters may have changed."""
        ...

    def buckets(
        self, *, dtypes: Mapping[str, torch.dtype] | None = None, changed_only: bool = False
    ) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield the names and tensors bucket by bucket."""
        ...


@dataclass(frozen=True, eq=False)
class _Copy:
    """A part of a weight, given by its place in the contiguous tensor, and the memory of vLLM that takes it."""

    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    destination: Tensor

    def source(self, weight: Tensor) -> Tensor:
        """Return a view of this part of the weight."""
        return weight.as_strided(self.size, self.stride, weight.storage_offset() + self.offset)


class WeightLoader:
    """Loads the actor's weights into vLLM's model. All ranks must load together.

    Args:
        model: vLLM's model.
        process: Called after each load. It prepares the loaded parameters for vLLM's kernels.
    """

    def __init__(self, model: Any, process: Callable[[], None]):
        self._model = model
        self._process = process
        self._is_first = True
        # Whether to repeat the recorded copies, which are here by the name of the weight, and the dtypes in which vLLM
        # needs the weights.
        self._repeats = False
        self._copies: dict[str, list[_Copy]] = {}
        self._constants: list[tuple[Tensor, float]] = []
        self._dtypes: dict[str, torch.dtype] = {}
        self._places: dict[str, Any] = {}
        # The version of the frozen parameters that vLLM holds.
        self._frozen_version: int | None = None

    def forget(self) -> None:
        """Note that vLLM's memory has lost all weights."""
        self._frozen_version = None

    @torch.inference_mode()
    def load(self, weights: WeightSource) -> None:
        """Load all weights, or only those that can have changed if vLLM still holds the others.

        Args:
            weights: The actor's weights.
        """
        if self._is_first:
            self._is_first = False
            self._load_recorded(weights)
        elif self._repeats and _on_all_ranks(self._places == self._places_of(self._places)):
            self._repeat_copies(weights)
        else:
            self._load_by_name(weights)
        self._frozen_version = weights.frozen_version

    def _load_by_name(self, weights: WeightSource) -> None:
        self._model.load_weights(_flat(weights.buckets()))
        self._process()

    def _load_recorded(self, weights: WeightSource) -> None:
        """Load by name, and keep the record of the copies if repeating them would give the same parameters."""
        before = self._places_of(self._tensors())
        with _Recorder() as recorder:
            self._model.load_weights(recorder.observed(_flat(weights.buckets())))
        self._copies, self._constants = recorder.copies, recorder.constants
        self._places = {name: before[name] for name in self._destinations() if name in before}
        self._process()
        moved = self._places != self._places_of(self._places)
        # Ranks of a tensor-parallel group hold parts of the same weights, or different experts.
        problem = recorder.problem or ("vLLM moves parameters after loading them" if moved else None)
        found = _from_all_ranks((problem, self._own_dtypes()))
        for _, dtypes in found:
            for name, dtype in dtypes.items():
                self._dtypes[name] = torch.promote_types(dtype, self._dtypes.get(name, dtype))
        problems = [problem for problem, _ in found]
        if not any(problems):
            differs = "vLLM changes parameters after loading them" if self._would_change(weights) else None
            problems = _from_all_ranks(differs)
        self._repeats = not any(problems)
        if not self._repeats:
            self._copies, self._constants = {}, []
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                announce(f"weight sync: vLLM loads weights by name, because {next(filter(None, problems))}")

    def _repeat_copies(self, weights: WeightSource) -> None:
        # Memory that vLLM discarded while it slept holds anything.
        for destination, value in self._constants:
            destination.fill_(value)
        changed_only = self._frozen_version == weights.frozen_version
        for bucket in weights.buckets(dtypes=self._dtypes, changed_only=changed_only):
            # Copies between the same two dtypes share one kernel.
            pairs: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
            for source, destination in self._pairs(bucket):
                destinations, sources = pairs[source.dtype, destination.dtype]
                destinations.append(destination)
                sources.append(source)
            for destinations, sources in pairs.values():
                torch._foreach_copy_(destinations, sources)
        self._process()

    def _would_change(self, weights: WeightSource) -> bool:
        """Return whether repeating the copies now would change a parameter."""
        same = [
            same_bits(source.to(destination.dtype), destination)
            for bucket in weights.buckets(dtypes=self._dtypes)
            for source, destination in self._pairs(bucket)
        ]
        return not all(same) or any((destination != value).any() for destination, value in self._constants)

    def _pairs(self, bucket: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the source and the destination of each copy of a bucket's weights."""
        for name, weight in bucket:
            weight = weight.contiguous()
            for copy in self._copies[name]:
                yield copy.source(weight), copy.destination

    def _own_dtypes(self) -> dict[str, torch.dtype]:
        """Return the least dtype that holds each weight exactly as this rank needs it."""
        dtypes: dict[str, torch.dtype] = {}
        for name, copies in self._copies.items():
            for copy in copies:
                dtype = copy.destination.dtype
                dtypes[name] = torch.promote_types(dtype, dtypes.get(name, dtype))
        return dtypes

    def _destinations(self) -> list[str]:
        """Return the names of vLLM's parameters, and of its buffers that take weights."""
        parameters = {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        copies = [copy for copies in self._copies.values() for copy in copies]
        taken = {copy.destination.untyped_storage().data_ptr() for copy in copies}
        return [
            name
            for name, tensor in self._tensors().items()
            if name in parameters or tensor.untyped_storage().data_ptr() in taken
        ]

    def _places_of(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the memory of some of vLLM's tensors."""
        tensors = self._tensors()
        found = {name: tensors[name] for name in names if name in tensors}
        return {name: (one.data_ptr(), one.shape, one.stride(), one.dtype) for name, one in found.items()}

    def _tensors(self) -> dict[str, Tensor]:
        parameters = self._model.named_parameters(remove_duplicate=False)
        return {**dict(parameters), **dict(self._model.named_buffers(remove_duplicate=False))}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the copies of a loader of weights, and whether it does anything else with the weights.

    Attributes:
        copies: The copies of each weight by its name.
        constants: Memory that the loader fills with a number, such as the padding of a vocabulary.
        problem: Why repeating the copies would not load the weights, None if it would.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: dict[str, list[_Copy]] = {}
        self.constants: list[tuple[Tensor, float]] = []
        self.problem: str | None = None
        self._name = ""
        self._weight = torch.empty(0)

    def observed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights to the loader, which must copy each one before it takes the next."""
        remaining = iter(weights)
        while True:
            with _disable_current_modes():
                name, weight = next(remaining, ("", None))
                if weight is None:
                    return
                self._name, self._weight = name, weight.contiguous()
            self.copies[self._name] = []
            yield self._name, self._weight

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = given.get(argument.name)
                for target in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(target, Tensor) and target.numel():
                        self._record(func, target, args)
        return func(*args, **(kwargs or {}))

    def _record(self, func: Any, target: Tensor, args: Any) -> None:
        if func is torch.ops.aten.copy_.default and self._is_part(args[1]):
            source = args[1].expand(target.shape)
            offset = source.storage_offset() - self._weight.storage_offset()
            self.copies[self._name].append(_Copy(offset, source.shape, source.stride(), _alias(target)))
        elif func in (torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default):
            self.constants.append((_alias(target), args[1] if len(args) > 1 else 0))
        else:
            self.problem = self.problem or f"its loader uses {func} for {self._name}"

    def _is_part(self, source: Tensor) -> bool:
        """Return whether `source` is a view of the current weight. Weights of a bucket share their memory."""
        if source.device != self._weight.device or source.dtype != self._weight.dtype or not source.numel():
            return False
        start = (source.data_ptr() - self._weight.data_ptr()) // source.itemsize
        extent = 1 + sum((size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True))
        return start >= 0 and start + extent <= self._weight.numel()


def _alias(tensor: Tensor) -> Tensor:
    """Return a plain tensor with the same memory, also for vLLM's subclasses of parameters."""
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _flat(buckets: Iterable[list[tuple[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    for bucket in buckets:
        yield from bucket


def _from_all_ranks(value: Any) -> list[Any]:
    """Return the value of each rank. Ranks that take different ways would wait for each other."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _on_all_ranks(condition: bool) -> bool:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return condition
    flag = torch.tensor(condition, dtype=torch.int32, device=get_device_id())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)
