"""The export of a sharded checkpoint, from finding it to the finished folder."""

import logging
from os import PathLike
from pathlib import Path

import torch

from rgtrain.checkpoints.finding import find_shards
from rgtrain.checkpoints.hugging_face import ModelLayout, check_fits, copy_model_files, model_layout
from rgtrain.checkpoints.shards import SplitTensor, read_shards
from rgtrain.checkpoints.writing import check_free, complete_folder, write_tensors, written_dtype
from rgtrain.errors import ConfigError, choose_from

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}

logger = logging.getLogger(__name__)


def export(
    checkpoint_dir: str | PathLike,
    output_dir: str | PathLike,
    *,
    hf_config_dir: str | PathLike | None = None,
    dtype: str | None = None,
) -> Path:
    """Write a sharded checkpoint of any world size as a Hugging Face model folder, and return that folder.

    `checkpoint_dir` is a `global_step_N`, its `actor/`, or the folder of the steps, of which the last complete one is
    taken. Config and tokenizer come from `hf_config_dir`, or from the checkpoint's own `huggingface/` folder. Values
    are kept to the bit unless `dtype` (a key of DTYPES) asks for another precision. `output_dir` must be new or empty;
    it appears only when it is complete.

    Raises ConfigError where the checkpoint is incomplete, doesn't fit the config or holds NaN, or the output is in use.

    >>> export("runs/quickstart/checkpoints", "outputs/quickstart")  # doctest: +SKIP
    PosixPath('outputs/quickstart')
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; {choose_from(dtype, DTYPES)}")
    target = DTYPES[dtype] if dtype else None
    output = Path(output_dir)
    check_free(output)
    shards = find_shards(Path(checkpoint_dir))
    if hf_config_dir is None and not shards.hugging_face_folder.is_dir():
        raise ConfigError(
            f"{str(shards.folder)!r} has no huggingface/ folder of its own: give HF_CONFIG_DIR, the folder with the "
            "config.json and the tokenizer of the model that was trained"
        )
    layout = model_layout(Path(hf_config_dir) if hf_config_dir else shards.hugging_face_folder)
    tensors = read_shards(shards.rank_files)
    check_fits(tensors, layout)
    kept = _without_tied_copies(tensors, layout)
    main_dtype = written_dtype(max(kept.values(), key=lambda tensor: tensor.num_values), target)
    with complete_folder(output) as folder:
        label = f"{shards.folder.resolve().parent.name}/{shards.folder.resolve().name}"
        write_tensors(folder, kept.values(), dtype=target, label=label)
        copy_model_files(layout, folder, dtype=main_dtype, tied=not layout.aliases.keys() & kept.keys())
    return output


def _without_tied_copies(tensors: dict[str, SplitTensor], layout: ModelLayout) -> dict[str, SplitTensor]:
    """`tensors` less the aliases of tied ones; all of them, with a warning, where training drove the two apart."""
    present = {alias: source for alias, source in layout.aliases.items() if alias in tensors}
    for alias, source in present.items():
        if not tensors[alias].equals(tensors[source].assemble()):
            logger.warning("%r is tied to %r by the config but differs: exporting both, untied", alias, source)
            return tensors
    return {name: tensor for name, tensor in tensors.items() if name not in present}
