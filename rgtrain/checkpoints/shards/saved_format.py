"""Give tensors the names and shapes that transformers' `save_pretrained` gives them, without copying whole tensors.

Transformers converts many models when it loads and saves them: it keeps the experts of a layer in one tensor and
renames the parts of multimodal models. Other loaders, such as vLLM and transformers 4, only know the names of saved
models.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rgtrain.checkpoints.checkpoint_names import checkpoint_tensors, layer_of
from rgtrain.checkpoints.shards.tensors import SplitTensor, TensorSource, read_all


def saved_tensors(tensors: Mapping[str, TensorSource], model: Any) -> dict[str, TensorSource]:
    """Convert tensors to the ones that `model.save_pretrained` writes.

    Args:
        tensors: The tensors of the model's state by name, without the aliases of tied tensors.
        model: The model of the transformers library, which may be on the meta device.

    Returns:
        The converted tensors by their names in the files. Parts of one tensor follow each other.
    """
    ignored = model._keys_to_ignore_on_save or ()
    layers: dict[str, dict[str, TensorSource]] = {}
    for name, tensor in tensors.items():
        if name not in ignored:
            layers.setdefault(layer_of(name), {})[name] = tensor
    last_rows, last_layer = _LastRows(), _LastLayer(model)
    converted: dict[str, TensorSource] = {}
    for layer in layers.values():
        converted |= _convert(layer, model, last_rows, last_layer)
    return converted


def model_tensors(
    saved: Mapping[str, SplitTensor], shapes: Mapping[str, tuple[int, ...]], model: Any
) -> dict[str, TensorSource]:
    """Convert tensors that `save_pretrained` wrote to those of the model's state, as `from_pretrained` does.

    Args:
        saved: The tensors by their names in the files. Names of the model's state are allowed too.
        shapes: The shape of each tensor of the model's state by name.
        model: The model of the transformers library, which may be on the meta device.

    Returns:
        The tensors of the model's state by name. Tensors that belong to none keep their names.
    """
    unknown = {name for name in saved if name not in shapes}
    if not unknown:
        return dict(saved)
    expected = {name: _Expected(name, shape) for name, shape in shapes.items() if name not in saved}
    parts: dict[str, list[TensorView]] = {}
    for name, part in saved_tensors(expected, model).items():
        if isinstance(part, TensorView) and name in unknown and saved[name].shape == part.shape:
            parts.setdefault(part.source.name, []).append(part)
    converted: dict[str, TensorSource] = {name: tensor for name, tensor in saved.items() if name in shapes}
    for origin, views in parts.items():
        if sum(math.prod(view.shape) for view in views) != math.prod(shapes[origin]):
            continue
        sources = tuple(saved[view.name] for view in views)
        unknown -= {view.name for view in views}
        if len(views) == 1 and views[0].strides == torch.empty(shapes[origin], device="meta").stride():
            converted[origin] = replace(sources[0], name=origin)
        else:
            converted[origin] = JoinedTensor(origin, shapes[origin], sources[0].dtype, tuple(views), sources)
    return converted | {name: saved[name] for name in saved if name in unknown}


def _convert(
    layer: dict[str, TensorSource], model: Any, last_rows: "_LastRows", last_layer: "_LastLayer"
) -> dict[str, TensorSource]:
    empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in layer.items()}
    with _WithoutCopies():  # type: ignore[no-untyped-call]  # torch has no annotation
        saved = dict(checkpoint_tensors(model, empty.items()))
    # The views of a tensor have its storage.
    origins = {tensor.untyped_storage()._cdata: name for name, tensor in empty.items()}
    positions = {name: number for number, name in enumerate(layer)}
    found: list[tuple[tuple[int, int], TensorSource]] = []
    for name, view in saved.items():
        shape, strides, offset = tuple(view.shape), tuple(view.stride()), int(view.storage_offset())
        origin = origins.get(view.untyped_storage()._cdata)
        if origin is None:
            # Few conversions compute a tensor, such as one matrix from those of queries, keys and values.
            found.append(((len(layer), 0), ComputedTensor(name, shape, view.dtype, layer, last_layer)))
        elif name == origin and (shape, strides) == (empty[name].shape, empty[name].stride()):
            found.append(((positions[name], 0), layer[name]))
        else:
            part = TensorView(name, layer[origin], shape, strides, offset, last_rows)
            found.append(((positions[origin], offset), part))
    return {tensor.name: tensor for _, tensor in sorted(found, key=lambda placed: placed[0])}


@dataclass(frozen=True)
class TensorView:
    """A part of another tensor, such as the weights of one expert.

    Attributes:
        name: The name of the part.
        source: The other tensor.
        shape: The shape of the part.
        strides: The distances between neighbours along each dimension, in values of the other tensor.
        offset: The position of the first value in the other tensor.
        last_rows: The rows of other tensors that were read last.
    """

    name: str
    source: TensorSource
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    last_rows: "_LastRows"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the part."""
        return self.source.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`, which may share memory with other parts of the same rows."""
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        first = self.offset + (start * self.strides[0] if self.shape else 0)
        last = first + sum((size - 1) * stride for size, stride in zip(shape, self.strides, strict=True))
        row_size = math.prod(self.source.shape[1:])
        first_row = first // row_size
        block = self.last_rows.read(self.source, first_row, last // row_size + 1)
        return block.as_strided(shape, self.strides, first - first_row * row_size).contiguous()


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor whose parts are tensors in files, such as the weights of all experts of a layer.

    Attributes:
        name: The name of the tensor.
        shape: Its shape.
        dtype: Its dtype.
        views: The positions of the parts.
        sources: The parts, in the order of `views`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    views: tuple[TensorView, ...]
    sources: tuple[TensorSource, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`. Only the parts in these rows are read."""
        row_size = math.prod(self.shape[1:])
        block = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        for view, source in zip(self.views, self.sources, strict=True):
            if view.strides[0] == row_size:
                shape = (stop - start, *view.shape[1:])
                block.as_strided(shape, view.strides, view.offset).copy_(source.rows(start, stop))
                continue
            last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
            first_row, stop_row = view.offset // row_size, last // row_size + 1
            low, high = max(start, first_row), min(stop, stop_row)
            if low < high:
                # The part may begin before the block or end after it. Other parts are in the same rows.
                rows = torch.empty((stop_row - first_row, *self.shape[1:]), dtype=self.dtype)
                rows[low - first_row : high - first_row] = block[low - start : high - start]
                part = rows.as_strided(view.shape, view.strides, view.offset - first_row * row_size)
                part.copy_(read_all(source))
                block[low - start : high - start] = rows[low - first_row : high - first_row]
        return block


@dataclass(frozen=True)
class _Expected:
    """A tensor of the model's state whose values are not known yet."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def rows(self, start: int, stop: int) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class ComputedTensor:
    """A tensor that a conversion computes from the tensors of its layer, all of which are read for it.

    Attributes:
        name: The name of the tensor.
        shape: Its shape.
        dtype: Its dtype.
        layer: The tensors of the layer by name.
        last_layer: The layer that was converted last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: Mapping[str, TensorSource]
    last_layer: "_LastLayer"

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop`."""
        whole = self.last_layer.convert(self.layer)[self.name]
        return whole[start:stop].contiguous() if self.shape else whole


@dataclass
class _LastRows:
    """The rows that were read last, because the parts of a tensor that follow each other are in the same rows."""

    key: tuple[int, int, int] = (0, 0, 0)
    values: Tensor = field(default_factory=lambda: torch.empty(0))

    def read(self, source: TensorSource, start: int, stop: int) -> Tensor:
        key = (id(source), start, stop)
        if key != self.key:
            # Release the memory of the last rows first.
            self.key, self.values = (0, 0, 0), torch.empty(0)
            self.key, self.values = key, source.rows(start, stop)
        return self.values


@dataclass
class _LastLayer:
    """The converted tensors of the layer that was read last."""

    model: Any
    layer: Mapping[str, TensorSource] | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def convert(self, layer: Mapping[str, TensorSource]) -> dict[str, Tensor]:
        if layer is not self.layer:
            self.layer, self.values = None, {}
            read = ((name, read_all(tensor)) for name, tensor in layer.items())
            self.layer, self.values = layer, dict(checkpoint_tensors(self.model, read))
        return self.values


class _WithoutCopies(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no annotation
    """Return views instead of contiguous copies. A view's strides and offset are the positions of its values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            return args[0]
        return func(*args, **(kwargs or {}))
