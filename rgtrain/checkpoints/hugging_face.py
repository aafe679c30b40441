"""The files that go beside the weights: config, tokenizer, chat template, generation config, model code."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from rgtrain.checkpoints.layout import ModelLayout

# Whatever a model calls them. No weights, and no README: a model card of the base would be wrong on the trained model.
COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
COPIED_FOLDERS = ("additional_chat_templates",)
NOT_COPIED = ("config.json", "adapter_config.json")


def copy_model_files(config_dir: Path, folder: Path) -> None:
    """Copy what `config_dir` holds to `folder`, except config.json and weights."""
    for path in sorted(config_dir.iterdir()):
        wanted = path.suffix in COPIED_SUFFIXES and not path.name.endswith(".index.json")
        if path.is_file() and wanted and path.name not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
        elif path.is_dir() and path.name in COPIED_FOLDERS:
            shutil.copytree(path, folder / path.name, copy_function=shutil.copyfile)


def write_config(layout: ModelLayout, folder: Path, *, dtype: torch.dtype, written: Iterable[str]) -> None:
    """Write the layout's config to `folder`: with `dtype`, the head that the model has, and untied where it is.

    `written` are the names of the tensors that the folder holds.
    """
    config = json.loads((layout.config_dir / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if layout.aliases.keys() & set(written):
        config["tie_word_embeddings"] = False
    if layout.is_critic:
        config["architectures"] = [layout.architecture]
        # transformers counts the labels by their names.
        config["id2label"] = {str(number): label for number, label in layout.config.id2label.items()}
        config["label2id"] = layout.config.label2id
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
