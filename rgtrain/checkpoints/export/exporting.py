"""Export a sharded checkpoint: find, merge, write, verify and upload it."""

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
from rgtrain.checkpoints.export.exported_config import exported_config
from rgtrain.checkpoints.export.loading_check import check_loading, vllm_verdict
from rgtrain.checkpoints.export.model_card import base_model, find_run, model_card
from rgtrain.checkpoints.export.output_folder import atomic_folder, check_output, check_space
from rgtrain.checkpoints.export.safetensors_format import write_tensors, written_bytes, written_dtype
from rgtrain.checkpoints.export.tokenizer_format import rewrite_tokenizer
from rgtrain.checkpoints.hugging_face import (
    CONFIG,
    ModelFiles,
    copy_model_files,
    refer_to_copied_code,
    remove_code_references,
    write_json,
)
from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.loading import ShardedModel, load_model
from rgtrain.checkpoints.shards.lora import Adapter
from rgtrain.checkpoints.shards.saved_format import saved_tensors
from rgtrain.checkpoints.shards.tensors import SplitTensor, TensorSource, same_values
from rgtrain.checkpoints.standstill import warn_on_standstill
from rgtrain.checkpoints.trained_problems import TrainedProblems, read_trained_problems
from rgtrain.checkpoints.trained_prompt import prompt_of_run
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
class ExportWeights:
    """The tensors to write.

    Attributes:
        tensors: The tensors by their names in the files.
        description: A description of the tensors for the model card.
        adapter: The LoRA adapter whose factors the tensors are, or None for the weights of a model.
        is_untied: Whether tensors that the config ties are written separately, because they differ.
    """

    tensors: Mapping[str, TensorSource]
    description: str
    adapter: Adapter | None = None
    is_untied: bool = False

    @property
    def stem(self) -> str:
        """The name of the files without number and suffix."""
        return "model" if self.adapter is None else "adapter_model"

    def dtype(self, requested: torch.dtype | None) -> torch.dtype:
        """Return the dtype in which the largest tensor is written, given the `requested` one."""
        return written_dtype(max(self.tensors.values(), key=lambda tensor: math.prod(tensor.shape)), requested)


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
    check_vllm: bool = False,
    push_to: str | None = None,
    force: bool = False,
    trust_checkpoint: bool = False,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Write a sharded checkpoint of any world size as a Hugging Face model folder.

    The output folder is written atomically. Only regular files inside the checkpoint's folder are read, and only
    configs, tokenizer and chat templates are copied from the config's folder.

    Args:
        checkpoint_dir: A `global_step_N` folder, its `actor/` or `critic/`, or a run folder.
        output_dir: A new or empty folder.
        hf_config_dir: The folder of the config and tokenizer; by default, the checkpoint's `huggingface/` folder. If
            only a LoRA adapter was saved, it also provides the base model's weights.
        step: The step of a run folder: a number, "best" or "last". By default, the last complete step.
        dtype: A key of DTYPES. By default, values are exported bit for bit.
        lora: "merged" to merge a LoRA adapter into the weights, "adapter" to write only a PEFT adapter.
        max_shard_size: The maximum size of a safetensors file, in bytes or such as "500MB".
        verify: Whether to read all tensors back and compare logits, which needs the memory of at most two models.
        check_vllm: Whether vLLM, if it is installed, also loads the exported language model, in another process.
        push_to: A repository of the hub to which the result is uploaded.
        force: Whether `output_dir` may be a folder with another model, which is replaced.
        trust_checkpoint: Whether code in the checkpoint's files may run. Python code is then exported too.
        say: Called with the results of `verify` and `check_vllm`.

    Returns:
        The output folder.

    Raises:
        ConfigError: The checkpoint is incomplete, damaged, doesn't match the config or holds NaN, the output folder is
            in use or its disk is full, or the exported files can't be loaded.

    >>> export("runs/quickstart", "outputs/quickstart", dtype="bf16")  # doctest: +SKIP
    PosixPath('outputs/quickstart')
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; {choose_from(dtype, DTYPES)}")
    requested = None if dtype is None else DTYPES[dtype]
    max_shard_bytes, output = _num_bytes(max_shard_size), Path(output_dir)
    if lora not in LORA:
        raise ConfigError(f"unknown lora {lora!r}; {choose_from(lora, LORA)}")
    checkpoint = find_checkpoint(Path(checkpoint_dir), step=step)
    config_dir = _config_dir(checkpoint, hf_config_dir)
    check_output(output, force=force, sources=(checkpoint.folder, config_dir))
    if push_to is not None:
        hub.check_login(push_to)
    with ExitStack() as resources:
        folder = resources.enter_context(atomic_folder(output, force=force))
        progress = resources.enter_context(warn_on_standstill(str(config_dir)))
        files = copy_model_files(config_dir, folder, trust=trust_checkpoint)
        model = load_model(
            checkpoint,
            files,
            trust=trust_checkpoint,
            scratch=folder.parent,
            resources=resources,
            progress=progress,
        )
        if trust_checkpoint:
            refer_to_copied_code(files)
        else:
            remove_code_references(files)
        rewrite_tokenizer(files)
        files.report_skipped()
        _check_base(model, files, needed=verify or lora == "merged")
        merged = model.merged_tensors() if verify or lora == "merged" else {}
        weights = _adapter_weights(model) if lora == "adapter" else _merged_weights(model, merged)
        _check_size(weights, model)
        check_space(output, sum(written_bytes(tensor, requested) for tensor in weights.tensors.values()))
        # Writing the weights takes minutes, so do everything else that can fail first.
        _write_config_and_card(checkpoint, model, files, weights, requested)
        write_tensors(
            folder,
            weights.tensors,
            dtype=requested,
            label=checkpoint.label,
            stem=weights.stem,
            max_shard_bytes=max_shard_bytes,
            progress=progress,
        )
        progress.moved("the exported files")
        check_loading(folder, model.layout, trust=trust_checkpoint)
        if verify:
            verifying.check_written(folder, weights.tensors, dtype=requested, progress=progress)
            progress.moved("the comparison of outputs")
            say(verifying.compare_outputs(folder, checkpoint.folder, model, merged, trust=trust_checkpoint))
        if check_vllm and weights.adapter is None and not model.layout.is_critic:
            progress.moved("vLLM")
            say(vllm_verdict(folder))
    if push_to is not None:
        hub.push(output, push_to, message=f"Export of {checkpoint.label}")
    return output


def _merged_weights(model: ShardedModel, merged: dict[str, TensorSource]) -> ExportWeights:
    tensors = _without_tied_copies(merged, model.layout.aliases)
    kind = "the language model" if not model.layout.is_critic else "the critic"
    return ExportWeights(
        saved_tensors(tensors, model.layout.model),
        f"all of {kind}" + (", its LoRA adapter merged" if model.adapter else ""),
        is_untied=bool(model.layout.aliases.keys() & tensors.keys()),
    )


def _adapter_weights(model: ShardedModel) -> ExportWeights:
    if (adapter := model.adapter) is None:
        raise ConfigError("the checkpoint has no LoRA adapter: omit --lora adapter")
    if full := adapter.fully_trained:
        raise ConfigError(f"tensor {full[0]!r} was trained in full besides the adapter: export with --lora merged")
    if changed := adapter.settings.trained_base:
        raise ConfigError(
            f"{' and '.join(changed)} changed the base model besides the adapter: export with --lora merged"
        )
    return ExportWeights(adapter.named_tensors(), "a LoRA adapter (PEFT) of the base model", adapter)


def _check_base(model: ShardedModel, files: ModelFiles, *, needed: bool) -> None:
    """Raise ConfigError if the weights of an adapter's base model are `needed`, but only quantized ones are there."""
    if needed and model.adapter and not model.tensors and files.quantization:
        raise ConfigError(
            f"the base model in {str(files.origin)!r} is quantized ({files.quantization}), so an adapter can't be "
            "merged into it: give HF_CONFIG_DIR with the base model in bf16, or export only the adapter with --lora "
            "adapter"
        )


def _check_size(weights: ExportWeights, model: ShardedModel) -> None:
    """Raise ConfigError if the tensors are much larger than their files."""
    if not weights.tensors:
        raise ConfigError("the checkpoint has no tensors to export: export another step")
    num_bytes = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in weights.tensors.values())
    # The factor 2 allows for tied tensors, which are stored once but can be written twice.
    if num_bytes > 2 * model.num_bytes:
        raise ConfigError(
            f"the tensors have {num_bytes} bytes, but the checkpoint's files only {model.num_bytes}, so several "
            "tensors share their data: export another step"
        )


def _write_config_and_card(
    checkpoint: Checkpoint,
    model: ShardedModel,
    files: ModelFiles,
    weights: ExportWeights,
    requested: torch.dtype | None,
) -> None:
    """Write the config of the model, or of the adapter if only that is exported, and the model card."""
    layout, dtype, run = model.layout, weights.dtype(requested), find_run(checkpoint)
    dtype_name = str(dtype).removeprefix("torch.")
    base = base_model(run, layout, files.config)
    if (adapter := weights.adapter) is not None:
        (files.folder / CONFIG).unlink()
        adapter_config = {
            "peft_type": "LORA",
            "base_model_name_or_path": base,
            **adapter.peft_config(layout.shapes),
            "inference_mode": True,
        }
        write_json(files.folder / "adapter_config.json", adapter_config)
    else:
        config = exported_config(files.config, layout, dtype=dtype_name, is_untied=weights.is_untied)
        write_json(files.folder / CONFIG, config)
    if (trained := _trained_problems(checkpoint)) is not None:
        trained.write(files.folder)
    if (prompt := prompt_of_run(run.config)) is not None:
        prompt.write(files.folder)
    card = model_card(
        checkpoint,
        layout,
        run,
        base=base,
        weights=f"{weights.description}, {dtype_name}",
        is_adapter=adapter is not None,
    )
    (files.folder / "README.md").write_text(card, encoding="utf-8")


def _trained_problems(checkpoint: Checkpoint) -> TrainedProblems | None:
    """Return the record of the checkpoint, which is in its folder `global_step_N`; None if it has no valid one."""
    try:
        found = map(read_trained_problems, checkpoint.folders_above(max_levels=2))
        return next((trained for trained in found if trained is not None), None)
    except ConfigError as error:
        logger.warning("the exported model does not record its training problems: %s", error)
        return None


def _without_tied_copies(tensors: dict[str, TensorSource], aliases: Mapping[str, str]) -> dict[str, TensorSource]:
    """Remove the aliases of tied tensors. If tied tensors differ after training, keep all of them and warn."""
    present = {alias: source for alias, source in aliases.items() if alias in tensors}
    for alias, source in present.items():
        one, other = tensors[alias], tensors[source]
        stored_once = isinstance(one, SplitTensor) and one.is_stored_as(other)
        if not stored_once and not same_values(one, other):
            logger.warning("the config ties %r to %r, but they differ; exporting both untied", alias, source)
            return tensors
    return {name: tensor for name, tensor in tensors.items() if name not in present}


def _config_dir(checkpoint: Checkpoint, given: str | PathLike[str] | None) -> Path:
    if given is not None:
        return Path(given)
    folder = checkpoint.hugging_face_folder
    if not folder.is_dir():
        raise ConfigError(
            f"{str(checkpoint.folder)!r} has no huggingface/ folder: give HF_CONFIG_DIR, the folder with the "
            "config.json and the tokenizer of the trained model"
        )
    if not folder.resolve().is_relative_to(checkpoint.folder.resolve()):
        raise ConfigError(
            f"{str(folder)!r} is a link to {str(folder.resolve())!r}, outside of the checkpoint: give that folder as "
            "HF_CONFIG_DIR if it is the model's"
        )
    return folder


def _num_bytes(size: str | int) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)?", str(size).strip().upper())
    num_bytes = int(float(match[1]) * _UNITS[match[2] or ""]) if match and (match[2] or "") in _UNITS else 0
    if not num_bytes:
        raise ConfigError(
            f"max_shard_size {size!r} is not a size: give a number of bytes, or a size such as 500MB, 5GB or 4GiB"
        )
    return num_bytes
