"""The export of a sharded checkpoint, from finding it to the finished folder."""

import logging
import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from rgtrain.checkpoints.checkpoint_lookup import find_checkpoint
from rgtrain.checkpoints.export import hub, verifying
from rgtrain.checkpoints.export.model_card import base_model, model_card, run_of
from rgtrain.checkpoints.export.output_folder import check_free, check_space, complete_folder
from rgtrain.checkpoints.export.safetensors_format import write_tensors, written_bytes, written_dtype
from rgtrain.checkpoints.hugging_face import (
    CONFIG,
    ModelFiles,
    copy_model_files,
    remove_code_references,
    write_json,
)
from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.loading import ShardedModel, load_model
from rgtrain.checkpoints.shards.lora import Adapter
from rgtrain.checkpoints.shards.tensors import SplitTensor, TensorSource, same_values
from rgtrain.checkpoints.standstill import reported_standstill
from rgtrain.errors import ConfigError, choose_from

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}
LORA = ("merged", "adapter")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """The tensors to write, by their names in the files. `words` describes them in the model card.

    If they are the factors of a LoRA adapter, `adapter` is that adapter. For the weights of a whole model it is None.
    """

    tensors: Mapping[str, TensorSource]
    words: str
    adapter: Adapter | None = None

    @property
    def stem(self) -> str:
        """The name of the files without their number and suffix."""
        return "model" if self.adapter is None else "adapter_model"

    def dtype(self, asked: torch.dtype | None) -> torch.dtype:
        """The dtype that the largest tensor is written in."""
        return written_dtype(max(self.tensors.values(), key=lambda tensor: math.prod(tensor.shape)), asked)


def export(
    checkpoint_dir: str | PathLike[str],
    output_dir: str | PathLike[str],
    *,
    hf_config_dir: str | PathLike[str] | None = None,
    step: str | int | None = None,
    dtype: str | None = None,
    lora: str = "merged",
    max_shard_size: str | int = "5GB",
    verify: bool = False,
    push_to: str | None = None,
    force: bool = False,
    trust_checkpoint: bool = False,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Write a sharded checkpoint of any world size as a Hugging Face model folder, and return that folder.

    `checkpoint_dir` is a `global_step_N`, its `actor/` or `critic/`, or the run's folder, of which `step` ("best",
    "last", a number) is taken, the last complete one by default. Config and tokenizer come from `hf_config_dir`, or
    from the checkpoint's own `huggingface/` folder. Values are kept to the bit unless `dtype` (a key of DTYPES) asks
    for another precision. A LoRA adapter is "merged" into the weights, or written as a PEFT "adapter" alone; where only
    the adapter was saved, the base model's weights come from `hf_config_dir`. `output_dir` must be new or empty, or
    with `force` another model's; it appears only when it is complete.

    `verify` reads everything back and compares logits, in the memory of two models at most; `say` gets the result.
    `push_to` uploads to that repository of the hub. `trust_checkpoint` lets code in the checkpoint's files run.

    Only regular files inside the checkpoint's folder are read, and only files of a model's config, tokenizer and chat
    templates are copied from the config's folder; Python code is copied with `trust_checkpoint`.

    Raises ConfigError if the checkpoint is incomplete, damaged, doesn't fit the config or holds NaN, or the output is
    in use or has no space.

    >>> export("runs/quickstart", "outputs/quickstart", dtype="bf16")  # doctest: +SKIP
    PosixPath('outputs/quickstart')
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; {choose_from(dtype, DTYPES)}")
    asked = None if dtype is None else DTYPES[dtype]
    max_shard_bytes, output = _num_bytes(max_shard_size), Path(output_dir)
    if lora not in LORA:
        raise ConfigError(f"unknown lora {lora!r}; {choose_from(lora, LORA)}")
    checkpoint = find_checkpoint(Path(checkpoint_dir), step=step)
    config_dir = _config_dir(checkpoint, hf_config_dir)
    check_free(output, force=force, sources=(checkpoint.folder, config_dir))
    if push_to is not None:
        hub.check_login(push_to)
    with ExitStack() as resources:
        folder = resources.enter_context(complete_folder(output, force=force))
        progress = resources.enter_context(reported_standstill(str(config_dir)))
        files = copy_model_files(config_dir, folder, trust=trust_checkpoint)
        model = load_model(
            checkpoint,
            files,
            trust=trust_checkpoint,
            scratch=folder.parent,
            resources=resources,
            progress=progress,
        )
        if not trust_checkpoint:
            remove_code_references(files)
        files.report_left_out()
        merged = model.merged() if verify or lora == "merged" else {}
        weights = _adapter_weights(model) if lora == "adapter" else _merged_weights(model, merged)
        _check_size(weights, model)
        check_space(output, sum(written_bytes(tensor, asked) for tensor in weights.tensors.values()))
        # The weights take minutes, so everything that is refused for another reason comes before them.
        _write_others(checkpoint, model, files, weights, asked)
        write_tensors(
            folder,
            weights.tensors,
            dtype=asked,
            label=checkpoint.label,
            stem=weights.stem,
            max_shard_bytes=max_shard_bytes,
            progress=progress,
        )
        if verify:
            verifying.check_written(folder, weights.tensors, dtype=asked, progress=progress)
            progress.moved("the comparison of logits")
            say(f"verified: {verifying.compare_logits(folder, model, merged, trust=trust_checkpoint)}")
    if push_to is not None:
        hub.push(output, push_to, message=f"Export of {checkpoint.label}")
    return output


def _merged_weights(model: ShardedModel, merged: dict[str, TensorSource]) -> Weights:
    tensors = _without_tied_copies(merged, model.layout.aliases)
    what = "the language model" if not model.layout.is_critic else "the critic"
    return Weights(tensors, f"all of {what}" + (", its LoRA adapter merged" if model.adapter else ""))


def _adapter_weights(model: ShardedModel) -> Weights:
    if (adapter := model.adapter) is None:
        raise ConfigError("the checkpoint has no LoRA adapter to export: leave out --lora adapter")
    if whole := adapter.whole_modules:
        raise ConfigError(f"tensor {whole[0]!r} was trained whole beside the adapter: export with --lora merged")
    return Weights(adapter.named_tensors(), "a LoRA adapter (PEFT) of the base model", adapter)


def _check_size(weights: Weights, model: ShardedModel) -> None:
    """Raises ConfigError if the tensors are several times larger than the files that they are read from."""
    if not weights.tensors:
        raise ConfigError("the checkpoint has no tensors to export: export another step")
    num_bytes = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in weights.tensors.values())
    # Tied tensors are stored once, and written twice if one of them differs.
    if num_bytes > (most := 2 * model.num_bytes):
        raise ConfigError(
            f"the tensors have {num_bytes} bytes, but the checkpoint's files hold {most // 2}: several tensors share "
            "their data; export another step"
        )


def _write_others(
    checkpoint: Checkpoint, model: ShardedModel, files: ModelFiles, weights: Weights, asked: torch.dtype | None
) -> None:
    """Write the config, of the model or of the adapter alone, and the model card."""
    layout, dtype, run = model.layout, weights.dtype(asked), run_of(checkpoint)
    dtype_name = str(dtype).removeprefix("torch.")
    base = base_model(run, layout, files.config)
    if (adapter := weights.adapter) is not None:
        (files.folder / CONFIG).unlink()
        adapter_config = {
            "peft_type": "LORA",
            "task_type": adapter.settings.task_type,
            "base_model_name_or_path": base,
            "r": adapter.settings.rank,
            "lora_alpha": adapter.settings.alpha,
            "target_modules": adapter.target_modules(layout.shapes),
            "inference_mode": True,
        }
        write_json(files.folder / "adapter_config.json", adapter_config)
    else:
        config = dict(files.config)
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype_name
        if layout.aliases.keys() & weights.tensors.keys():
            config["tie_word_embeddings"] = False
        if layout.is_critic:
            config["architectures"] = [layout.architecture]
            # transformers counts the labels by their names.
            config["id2label"] = {str(number): label for number, label in layout.config.id2label.items()}
            config["label2id"] = layout.config.label2id
        write_json(files.folder / CONFIG, config)
    card = model_card(checkpoint, layout, run, base=base, weights=f"{weights.words}, {dtype_name}")
    (files.folder / "README.md").write_text(card, encoding="utf-8")


def _without_tied_copies(tensors: dict[str, TensorSource], aliases: Mapping[str, str]) -> dict[str, TensorSource]:
    """`tensors` less the aliases of tied ones; all of them, with a warning, where training drove the two apart."""
    present = {alias: source for alias, source in aliases.items() if alias in tensors}
    for alias, source in present.items():
        one, other = tensors[alias], tensors[source]
        stored_once = isinstance(one, SplitTensor) and one.is_stored_as(other)
        if not stored_once and not same_values(one, other):
            logger.warning("%r is tied to %r by the config but differs: exporting both, untied", alias, source)
            return tensors
    return {name: tensor for name, tensor in tensors.items() if name not in present}


def _config_dir(checkpoint: Checkpoint, given: str | PathLike[str] | None) -> Path:
    if given is not None:
        return Path(given)
    folder = checkpoint.hugging_face_folder
    if not folder.is_dir():
        raise ConfigError(
            f"{str(checkpoint.folder)!r} has no huggingface/ folder of its own: give HF_CONFIG_DIR, the folder with "
            "the config.json and the tokenizer of the model that was trained"
        )
    if not folder.resolve().is_relative_to(checkpoint.folder.resolve()):
        raise ConfigError(
            f"{str(folder)!r} is a link to {str(folder.resolve())!r}, outside of the checkpoint: if that is the "
            "model's folder, give it as HF_CONFIG_DIR"
        )
    return folder


def _num_bytes(size: str | int) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)?", str(size).strip().upper())
    num_bytes = int(float(match[1]) * _UNITS[match[2] or ""]) if match and (match[2] or "") in _UNITS else 0
    if not num_bytes:
        raise ConfigError(f"max_shard_size {size!r} is no size: give a number of bytes, or one as 500MB, 5GB or 4GiB")
    return num_bytes
