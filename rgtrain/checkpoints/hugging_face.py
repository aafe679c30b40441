"""The Hugging Face side of an export: what a config's model expects, and the files that go beside the weights."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rgtrain.checkpoints.shards import SplitTensor
from rgtrain.errors import ConfigError

# Config, tokenizer, chat template, generation config and model code, whatever a model calls them. No weights, and no
# README: a model card of the base would be wrong on the trained model.
COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
COPIED_FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class ModelLayout:
    """The tensors of a config's model: name -> shape, and for tied ones alias -> the name it shares its values with."""

    config_dir: Path
    architecture: str
    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]


def model_layout(config_dir: Path) -> ModelLayout:
    """The layout of the causal language model that `config_dir/config.json` describes; no weights are made.

    Raises ConfigError where there is no such config, or transformers knows no causal language model for it.
    """
    if not (config_dir / "config.json").is_file():
        raise ConfigError(
            f"there is no config.json in {str(config_dir)!r}: give the Hugging Face folder of the model trained"
        )
    try:
        config = AutoConfig.from_pretrained(config_dir, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{str(config_dir / 'config.json')!r} makes no causal language model: {reason}") from error
    return ModelLayout(
        config_dir=config_dir,
        architecture=type(model).__name__,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        aliases=dict(model.all_tied_weights_keys),
    )


def check_fits(tensors: Mapping[str, SplitTensor], layout: ModelLayout) -> None:
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


def copy_model_files(layout: ModelLayout, folder: Path, *, dtype: torch.dtype, tied: bool) -> None:
    """Copy config, tokenizer and chat template to `folder`; the config then names `dtype`, and unties unless `tied`."""
    for path in sorted(layout.config_dir.iterdir()):
        wanted = path.suffix in COPIED_SUFFIXES and not path.name.endswith(".index.json")
        if path.is_file() and wanted and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
        elif path.is_dir() and path.name in COPIED_FOLDERS:
            shutil.copytree(path, folder / path.name, copy_function=shutil.copyfile)
    config = json.loads((layout.config_dir / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if layout.aliases and not tied:
        config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
