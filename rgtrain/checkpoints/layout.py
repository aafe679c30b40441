"""The model that a config describes: the tensors it needs, and whether a checkpoint holds them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from rgtrain.checkpoints.tensors import TensorSource
from rgtrain.errors import ConfigError

# What trl, and so verl, calls the head it puts on a language model where there is no token classification model of it.
VALUE_HEAD = ("v_head.summary.weight", "v_head.summary.bias")


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


def model_layout(config_dir: Path, tensors: Mapping[str, tuple[int, ...]], *, trust: bool = False) -> ModelLayout:
    """The layout of the model that `config_dir/config.json` describes, with the head that `tensors` show; no weights.

    Critics are saved with the config of the language model they were made of: only their tensors (name -> shape) tell.
    Raises ConfigError where there is no such config, or transformers knows no such model of it.
    """
    if not (config_dir / "config.json").is_file():
        raise ConfigError(
            f"there is no config.json in {str(config_dir)!r}: give the Hugging Face folder of the model trained"
        )
    try:
        config = AutoConfig.from_pretrained(config_dir, trust_remote_code=trust)
        kind, auto_class = _kind(config, tensors)
        if "score.weight" in tensors:
            config.num_labels = tensors["score.weight"][0]
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "; --trust-checkpoint lets the folder's own code run" if "trust_remote_code" in str(error) else ""
        raise ConfigError(f"{str(config_dir / 'config.json')!r} makes no model: {reason}{hint}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if VALUE_HEAD[0] in tensors:
        shapes |= dict(zip(VALUE_HEAD, [(1, config.get_text_config().hidden_size), (1,)], strict=True))
    aliases = dict(model.all_tied_weights_keys)
    return ModelLayout(config_dir, config, kind, auto_class, type(model), shapes, aliases)


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
