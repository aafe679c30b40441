"""Determine the tensors of the model that a config describes, and check that a checkpoint has them."""

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rgtrain.checkpoints.hugging_face import CONFIG, ModelFiles, nested_objects, unusable_file_error
from rgtrain.checkpoints.shards.tensors import TensorSource
from rgtrain.checkpoints.untrusted_files import quiet_libraries, quoted
from rgtrain.errors import ConfigError

# The tensors of the value head that trl (used by verl) adds to a language model without a token classification class.
VALUE_HEAD = ("v_head.summary.weight", "v_head.summary.bias")
# transformers makes lists of this length. The deepest model in use has 126 layers.
_COUNT = re.compile(r"layer|depth|block|stage|label|expert|head|beam", re.IGNORECASE)
_MAX_COUNTED = 100_000
_MAX_NUMBER = 2**53


@dataclass(frozen=True)
class ModelLayout:
    """The tensors of the model that a config describes.

    Attributes:
        config_dir: The folder of the config.
        config: The config.
        kind: A description of the model, such as "language model".
        auto_class: The class of transformers that loads the model.
        model: The model, without weights (on the meta device).
        shapes: The shape of each tensor by name.
        aliases: The names of tied tensors, each with the name of the tensor whose values it shares.
        transposed: The names of modules that store their weights as inputs x outputs, as the layers of GPT-2 and the
            experts of GPT-OSS do.
    """

    config_dir: Path
    config: PretrainedConfig
    kind: str
    auto_class: Any
    model: PreTrainedModel
    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]
    transposed: frozenset[str] = frozenset()

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The class of the loaded model."""
        return type(self.model)

    @property
    def architecture(self) -> str:
        """The name of the model's class."""
        return self.model_class.__name__

    @property
    def is_critic(self) -> bool:
        """Whether the model is a critic."""
        return self.kind.startswith("critic")


def model_layout(
    files: ModelFiles, tensors: Mapping[str, tuple[int, ...]], *, max_parts: int, trust: bool = False
) -> ModelLayout:
    """Determine the tensors of the model that a config describes, without creating its weights.

    verl saves a critic with the config of the language model from which it was made, so the kind of head is inferred
    from the checkpoint's tensors.

    Args:
        files: The copies of the model's files.
        tensors: The shapes of the checkpoint's tensors by name.
        max_parts: The maximum number of modules and parameters. Without it, a config could ask for any number.
        trust: Whether Python code among the files may run.

    Returns:
        The layout.

    Raises:
        ConfigError: transformers can't make a model from this config, or the model is too large.
    """
    _check_counts(files)
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(files.folder, trust_remote_code=trust)
        kind, auto_class = _model_kind(config, tensors)
        if "score.weight" in tensors:
            config.num_labels = _num_labels(tensors["score.weight"])
        with torch.device("meta"), _limit_parts(max_parts), quiet_libraries():
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if VALUE_HEAD[0] in tensors:
            shapes |= dict(zip(VALUE_HEAD, [(1, config.get_text_config().hidden_size), (1,)], strict=True))
    except ConfigError:
        raise
    # Hundreds of model constructors take unchecked values of the config, so any exception can occur.
    except Exception as error:
        refusal = unusable_file_error(files, CONFIG, "model", error)
        raise refusal from error
    aliases = dict(model.all_tied_weights_keys)
    transposed = frozenset(
        name
        for name, module in model.named_modules()
        if isinstance(module, Conv1D) or getattr(module, "is_transposed", False) is True
    )
    return ModelLayout(files.origin, config, kind, auto_class, model, shapes, aliases, transposed)


def _check_counts(files: ModelFiles) -> None:
    """Refuse huge numbers of layers and labels, because transformers would make lists of that length."""
    for part in nested_objects(files.config):
        for key, value in part.items():
            if isinstance(value, int) and value > (limit := _MAX_COUNTED if _COUNT.search(key) else _MAX_NUMBER):
                raise ConfigError(
                    f"{str(files.origin / CONFIG)!r} has {quoted(key)} {str(value)[:30]}, but at most {limit} is "
                    "allowed: give the config of the trained model"
                )


def _num_labels(head: tuple[int, ...]) -> int:
    if len(head) != 2 or head[0] > _MAX_COUNTED:
        raise ConfigError(
            f"tensor 'score.weight' has shape {list(head)}, but a classifier head has 2 dimensions and at most "
            f"{_MAX_COUNTED} labels: use another step"
        )
    return head[0]


@contextmanager
def _limit_parts(num_parts: int) -> Iterator[None]:
    """Raise ConfigError inside the block once a model with more than `num_parts` modules and parameters is built."""
    counted = itertools.count(1)

    def count(*_: Any) -> None:
        if next(counted) > num_parts:
            raise ConfigError(
                f"the config describes a model with more than {num_parts} modules and parameters, but the checkpoint "
                "is much smaller: give the config of the trained model"
            )

    handles = [
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _model_kind(config: PretrainedConfig, tensors: Mapping[str, tuple[int, ...]]) -> tuple[str, Any]:
    if "score.bias" in tensors:
        return "critic (token classification head)", transformers.AutoModelForTokenClassification
    if "score.weight" in tensors:
        return "critic (sequence classification head)", transformers.AutoModelForSequenceClassification
    kind = "critic (language model with trl's value head)" if VALUE_HEAD[0] in tensors else "language model"
    if type(config) in transformers.AutoModelForImageTextToText._model_mapping:
        return kind, transformers.AutoModelForImageTextToText
    return kind, transformers.AutoModelForCausalLM


def check_fits(tensors: Mapping[str, TensorSource], layout: ModelLayout) -> None:
    """Check that a checkpoint has exactly the tensors of a model. Only aliases of tied tensors may be missing.

    Args:
        tensors: The checkpoint's tensors by name.
        layout: The model's tensors.

    Raises:
        ConfigError: A tensor is missing, unknown or of another shape.
    """
    model = f"the {layout.architecture} of {str(layout.config_dir)!r}"
    fix = "give the config of the trained model"
    if missing := [name for name in layout.shapes if name not in tensors and name not in layout.aliases]:
        raise ConfigError(f"the checkpoint lacks tensor {_name_first(missing)} of {model}: {fix}")
    if unknown := [name for name in tensors if name not in layout.shapes]:
        raise ConfigError(f"the checkpoint has tensor {_name_first(unknown)}, which {model} does not have: {fix}")
    for name, tensor in tensors.items():
        if tensor.shape != layout.shapes[name]:
            expected = list(layout.shapes[name])
            raise ConfigError(
                f"tensor {name!r} has shape {list(tensor.shape)} in the checkpoint but {expected} in {model}: {fix}"
            )


def _name_first(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
