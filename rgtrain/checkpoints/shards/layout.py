"""The model that a config describes: the tensors it needs, and whether a checkpoint holds them."""

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

from rgtrain.checkpoints.hugging_face import CONFIG, ModelFiles, nested_objects, unusable
from rgtrain.checkpoints.shards.tensors import TensorSource
from rgtrain.checkpoints.untrusted_files import quiet_libraries, quoted
from rgtrain.errors import ConfigError

# What trl, and so verl, calls the head it puts on a language model where there is no token classification model of it.
VALUE_HEAD = ("v_head.summary.weight", "v_head.summary.bias")
# transformers makes lists of these; the deepest model in use has 126 layers.
_COUNT = re.compile(r"layer|depth|block|stage|label|expert|head|beam", re.IGNORECASE)
_MOST_COUNTED = 100_000
_MOST_NUMBER = 2**53


@dataclass(frozen=True)
class ModelLayout:
    """The tensors of a config's model: name -> shape, and for tied ones alias -> the name it shares its values with.

    `kind` is what the model is, in words; `auto_class` loads it, and makes a `model_class` of it.
    """

    config_dir: Path
    config: PretrainedConfig
    kind: str
    auto_class: Any
    model_class: type[PreTrainedModel]
    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]

    @property
    def architecture(self) -> str:
        return self.model_class.__name__

    @property
    def is_critic(self) -> bool:
        return self.kind.startswith("critic")


def model_layout(
    files: ModelFiles, tensors: Mapping[str, tuple[int, ...]], *, most_parts: int, trust: bool = False
) -> ModelLayout:
    """The layout of the model that the config in `files` describes, with the head that `tensors` show; no weights.

    Critics are saved with the config of the language model they were made of: only their tensors (name -> shape) tell.

    Args:
        files: The copies of the model's files.
        tensors: The shapes of the checkpoint's tensors by name.
        most_parts: How many modules and parameters a model of this checkpoint can have. A config asks for any number.
        trust: Whether code that the files bring may run.

    Raises:
        ConfigError: transformers knows no such model, can't make it of this config, or it is too large.
    """
    _check_counts(files)
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(files.folder, trust_remote_code=trust)
        kind, auto_class = _kind(config, tensors)
        if "score.weight" in tensors:
            config.num_labels = _num_labels(tensors["score.weight"])
        with torch.device("meta"), _at_most(most_parts), quiet_libraries():
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if VALUE_HEAD[0] in tensors:
            shapes |= dict(zip(VALUE_HEAD, [(1, config.get_text_config().hidden_size), (1,)], strict=True))
    except ConfigError:
        raise
    # The constructors of some hundred models take any value of the file and may fail with any exception.
    except Exception as error:
        raise unusable(files, CONFIG, "model", error) from error
    return ModelLayout(files.origin, config, kind, auto_class, type(model), shapes, dict(model.all_tied_weights_keys))


def _check_counts(files: ModelFiles) -> None:
    """Refuse numbers of layers and labels of which transformers would make lists, before anything is made of them."""
    for part in nested_objects(files.config):
        for key, value in part.items():
            if isinstance(value, int) and value > (most := _MOST_COUNTED if _COUNT.search(key) else _MOST_NUMBER):
                raise ConfigError(
                    f"{str(files.origin / CONFIG)!r} has {quoted(key)} {str(value)[:30]}, and an export allows "
                    f"{most} at most: give the config of the model that was trained"
                )


def _num_labels(head: tuple[int, ...]) -> int:
    if len(head) != 2 or head[0] > _MOST_COUNTED:
        raise ConfigError(
            f"tensor 'score.weight' is {list(head)}, which is no classifier's of at most {_MOST_COUNTED} labels: "
            "export another step"
        )
    return head[0]


@contextmanager
def _at_most(num_parts: int) -> Iterator[None]:
    """Refuse to make a model of more than `num_parts` modules and parameters, while it is being made."""
    counted = itertools.count(1)

    def count(*_: Any) -> None:
        if next(counted) > num_parts:
            raise ConfigError(
                f"the config asks for a model of more than {num_parts} modules and parameters, which this checkpoint "
                "does not hold: give the config of the model that was trained"
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


def _kind(config: PretrainedConfig, tensors: Mapping[str, tuple[int, ...]]) -> tuple[str, Any]:
    if "score.bias" in tensors:
        return "critic (token classification head)", transformers.AutoModelForTokenClassification
    if "score.weight" in tensors:
        return "critic (sequence classification head)", transformers.AutoModelForSequenceClassification
    kind = "critic (language model with trl's value head)" if VALUE_HEAD[0] in tensors else "language model"
    if type(config) in transformers.AutoModelForImageTextToText._model_mapping:
        return kind, transformers.AutoModelForImageTextToText
    return kind, transformers.AutoModelForCausalLM


def check_fits(tensors: Mapping[str, TensorSource], layout: ModelLayout) -> None:
    """Raises ConfigError, naming the tensor, unless the checkpoint holds what the model needs and nothing else.

    Only an alias of a tied tensor may be missing.
    """
    model = f"the {layout.architecture} of {str(layout.config_dir)!r}"
    fix = "give the config of the model that was trained"
    if missing := [name for name in layout.shapes if name not in tensors and name not in layout.aliases]:
        raise ConfigError(f"the checkpoint lacks tensor {_first(missing)} of {model}: {fix}")
    if unknown := [name for name in tensors if name not in layout.shapes]:
        raise ConfigError(f"the checkpoint has tensor {_first(unknown)}, which {model} has not: {fix}")
    for name, tensor in tensors.items():
        if tensor.shape != layout.shapes[name]:
            expected = list(layout.shapes[name])
            raise ConfigError(
                f"tensor {name!r} is {list(tensor.shape)} in the checkpoint, {expected} in {model}: {fix}"
            )


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
