"""Give a model's tensors the names and shapes of its published checkpoints, which are the ones that vLLM loads.

Transformers keeps the experts of a layer in one tensor, and names some layers differently. vLLM skips names that
it does not know, and would generate with the weights that it had before.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

_LAYER = re.compile(r".*?\.\d+\.")


def checkpoint_tensors(model: Any, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Convert tensors one layer at a time, so that no more than one layer is copied.

    Args:
        model: The model of the transformers library.
        tensors: The names and tensors of its state, in the model's order. Each tensor is whole.

    Yields:
        The name in a checkpoint and the tensor.
    """
    if not converts_tensors(model):
        yield from tensors
        return
    for _, layer in groupby(tensors, key=lambda named: layer_of(named[0])):
        yield from revert_weight_conversion(model, dict(layer)).items()


def converts_tensors(model: Any) -> bool:
    """Return whether checkpoints of the model have other names or shapes than the model of the transformers library."""
    # from_pretrained sets the first one. For all other models, transformers looks the conversions up, as here.
    return bool(getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False))


def layer_of(name: str) -> str:
    """Return the beginning of a tensor's name up to the first number, such as "model.layers.3.", or ""."""
    found = _LAYER.match(name)
    return found.group() if found else ""
